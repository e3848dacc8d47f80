"""Paths in object storage: never a folder of that name, and nothing to whoever names none."""

import subprocess
import sys
from pathlib import Path

import pytest

import mlstm_jax
from helpers import planted_model
from mlstm_jax import storage
from mlstm_jax.errors import UserError


@pytest.mark.parametrize("path", ["a/b", "/a", "tfds:glue/sst2", "a:/b", "./gs:/b", "-", "x/gs://b", "movie-reviews"])
def test_other_paths_are_of_this_machine(path):
    assert storage.local(path) == Path(path)


@pytest.mark.parametrize("path", ["xx://bucket/run", Path("xx://bucket/run"), "file:///run", "XX://bucket/run"])
def test_a_path_of_an_unknown_scheme_is_refused(path):
    with pytest.raises(UserError, match="://(bucket)?/?run"):
        storage.local(path)


@pytest.mark.parametrize(
    "command",
    [
        "train --config tiny --run-dir xx://b/run",
        "train --config tiny --data xx://b/reviews.csv --run-dir run",
        "train --config tiny --init xx://b/weights --run-dir run",
        "train --config xx://b/mine.py --run-dir run",
        "eval xx://b/run",
        "eval {model} --task xx://b/task.csv",
        "eval {model} --data xx://b/sst",
        "eval {model} --task {task} --out xx://b/out",
        "eval {model} --task {task} --report xx://b/out",
        "sample xx://b/run",
        "score xx://b/run {task}",
        "score {model} xx://b/reviews.csv",
        "score {model} {task} --out xx://b/scored.csv",
        "heatmap {model} text --unit 7 --out xx://b/page.html",
        "convert xx://b/weights out",
        "convert {model} xx://b/out",
        "corpus xx://b/reviews.csv --out out",
        "corpus {task} --out xx://b/out",
    ],
)
def test_no_command_takes_it_for_a_folder(command, run_here, tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    model, task = small
    ended = run_here(
        f"mlstm {command.split()[0]}", *(part.format(model=model, task=task) for part in command.split()[1:])
    )
    assert ended.status == 2 and ended.err.count("error: xx://b/") == 1 and "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_python_does_not_either():
    with pytest.raises(UserError, match="^xx://b/run"):
        mlstm_jax.load("xx://b/run")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A planted model and texts for it."""
    folder = tmp_path_factory.mktemp("small")
    planted_model.smileys().save(folder / "model")
    return folder / "model", planted_model.write_labelled(folder / "task.csv", 60)


def test_a_scheme_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    for scheme, extra in (("gs", "gcs"), ("s3", "s3")):
        with pytest.raises(UserError, match=rf"^{scheme}://b/run: .* pip install 'mlstm-jax\[{extra}\]'$"):
            storage.local(f"{scheme}://b/run")


@pytest.mark.parametrize("path", ["gs://", "s3:///", "gs://b/../x"])
def test_a_path_that_names_no_place_in_a_bucket_is_refused(path):
    with pytest.raises(UserError, match="names no place in a bucket"):
        storage.local(path)


def test_a_mirror_is_called_what_it_stands_for(monkeypatch, tmp_path):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    for use in ("read", "train", "process-1"):
        path = storage.local("gs:/bucket/a/b", use)
        assert storage.is_remote(path) and storage.name(path) == "gs://bucket/a/b"
        assert storage.shown(f"wrote {path}/x.json in {path}") == "wrote gs://bucket/a/b/x.json in gs://bucket/a/b"
    assert not storage.is_remote(tmp_path) and storage.shown(f"wrote {tmp_path}") == f"wrote {tmp_path}"


@pytest.mark.parametrize("evil", ["../out.txt", "a/../../../out.txt", "/out.txt", "a//b", "./out.txt"])
def test_no_name_in_a_bucket_leads_out_of_its_mirror(evil, monkeypatch, tmp_path):
    class Bucket:
        protocol = "gs"

        def find(self, key, detail):
            return {f"{key}/{each}": {"size": 1, "mtime": 0} for each in (evil, "good.txt")} | {f"{key}/": {"size": 0}}

        def get_file(self, key, path):
            Path(path).write_text("x")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_system", lambda scheme: Bucket())
    monkeypatch.setattr(storage, "EXTRAS", {"gs": ("json", "gcs")})
    mirror = storage.local("gs://bucket/run")
    assert storage.fetch(mirror) == ["good.txt"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mirror / "good.txt"]


def test_importing_the_programs_imports_nothing_of_it():
    modules = "mlstm_jax.cli.train, mlstm_jax.cli.evaluate, mlstm_jax.cli.corpus, mlstm_jax.cli.score"
    looked = (
        f"import sys, {modules}; sys.exit(bool({{'gcsfs', 's3fs', 'fsspec', 'aiohttp', 'etils'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", looked], check=False).returncode == 0
