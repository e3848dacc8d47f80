"""SST through tensorflow-datasets: a builder of our own, checked by registered checksums, without TensorFlow."""

import contextlib
import io
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from mlstm_jax.errors import UserError
from mlstm_jax.tasks.sets import Split
from mlstm_jax.tasks.sst import BY_HAND, FILES, OTHERWISE, read_split

logger = logging.getLogger(__name__)

PATIENCE = 3  # seconds
Example = tuple[int, dict[str, Any]]  # key and features


class SstBinary(tfds.core.GeneratorBasedBuilder):
    """Binary SST: 6,920 / 872 / 1,821 whole sentences in their own spelling, unlike the lower-cased phrases of GLUE."""

    VERSION = tfds.core.Version("1.0.0")
    url = "https://raw.githubusercontent.com/openai/generating-reviews-discovering-sentiment/master/data"

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["negative", "positive"]),
            "row": tfds.features.Scalar(np.int32),  # tensorflow-datasets shuffles what it stores
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences of the Stanford Sentiment Treebank, as released with Radford et al. 2017.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/openai/generating-reviews-discovering-sentiment",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Example]]:
        # One after another: a file that is refused leaves no other download running.
        return {split: self._generate_examples(self._download(dl_manager, file)) for split, file in FILES.items()}

    def _download(self, dl_manager: tfds.download.DownloadManager, file: str) -> Path:
        try:
            return Path(dl_manager.download(f"{self.url}/{file}"))
        except NonMatchingChecksumError:
            raise UserError(
                f"{self.url}/{file} is not the released file (its SHA-256 differs); nothing of it was kept; {BY_HAND}"
            ) from None

    def _generate_examples(self, path: Path) -> Iterator[Example]:
        for row, (text, label) in enumerate(zip(*read_split(path), strict=True)):
            yield row, {"text": text, "label": label, "row": np.int32(row)}


def load(data_dir: Path | None) -> dict[str, Split]:
    """The three splits in the files' own order, fetched on the first use and never again.

    Raises UserError where they cannot be fetched, for a file whose SHA-256 is not the registered one, and for a stored
    set that is damaged.
    """
    builder = SstBinary(data_dir=data_dir)
    if not builder.info.splits:
        _fetch(builder)
    sources = cast(dict[str, Sequence[dict[str, Any]]], builder.as_data_source())  # of one set: no deeper tree
    try:
        return {split: _in_file_order(sources[split]) for split in FILES}
    except (RuntimeError, TypeError):  # damaged records raise the one, or are read as None
        raise UserError(f"the SST in {builder.data_path} is damaged; delete that folder to fetch it again") from None


def _in_file_order(source: Sequence[dict[str, Any]]) -> Split:
    rows = sorted(source, key=lambda row: row["row"])
    return Split([row["text"].decode() for row in rows], np.array([row["label"] for row in rows], np.int64))


def _fetch(builder: SstBinary) -> None:
    root = builder.data_dir_root
    obstacle = _obstacle(f"{builder.url}/{FILES['train']}")
    if obstacle is not None:
        raise UserError(f"SST is not in {root} and {obstacle}; {BY_HAND}", "eval", "RUN", **OTHERWISE)
    logger.info(f"fetching SST (1 MB) into {root}")
    config = tfds.download.DownloadConfig(force_checksums_validation=True, try_download_gcs=False)
    tfds.disable_progress_bar()  # a dozen of them, for 1 MB
    # The downloads go away: what is prepared from them is the cache. The banners on standard output are not shown.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")
        except (OSError, tfds.download.DownloadError) as error:
            message = f"SST could not be fetched into {root} ({error}); {BY_HAND}"
            raise UserError(message, "eval", "RUN", **OTHERWISE) from None


def _obstacle(url: str) -> str | None:
    """Why `url` cannot be fetched, or None: asked first, since tensorflow-datasets retries in silence for minutes.

    The same library asks as will fetch, so that proxies and certificates count alike. It asks in a thread, because no
    timeout covers the resolution of names.
    """
    host = urlsplit(url).hostname
    found: list[str | None] = [f"{host} does not answer"]

    def ask() -> None:
        try:
            status = requests.head(url, timeout=PATIENCE, allow_redirects=True).status_code
            found[0] = None if status == 200 else f"{host} answers {status} for {url}"
        except requests.RequestException as error:
            found[0] = f"{host} does not answer ({type(error).__name__})"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return found[0]
