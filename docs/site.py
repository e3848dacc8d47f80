"""Which files are pages of the site: each at its place in the repository, so that relative links work in both."""

from pathlib import Path

from mkdocs.structure.files import File, Files

MODEL = ("mlstm_jax/pretrained/README.md", "mlstm_jax/pretrained/LICENSE-weights")
PAGES = ("*.md", "docs/*.md", "docs/*.png", "benchmarks/*.md", "examples/*.ipynb", *MODEL)


def on_files(files, config):
    """The theme's files, and ours."""
    root = Path(config.config_file_path).parent
    ours = (path.relative_to(root).as_posix() for page in PAGES for path in sorted(root.glob(page)))
    theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files(theme + [File(path, str(root), config.site_dir, config.use_directory_urls) for path in ours])
