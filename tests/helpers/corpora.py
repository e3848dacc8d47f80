"""Prepared corpora: reviews to prepare, and ways of preparing them."""

import json
import random
import sys

from mlstm_jax.corpus import prepare
from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError


def dump(path, count, seed=0, bad=0):
    """A dump like that of 2014: strict and loose lines, entities, tags, any letters, empty and doubled reviews."""
    draw = random.Random(seed)
    words = 'a good bad film &amp; &quot;so&quot; <br /> naïve 🙂 𝒳 it\'s \\n "x" tea\tcup'.split(" ")
    lines, texts = [], []
    for number in range(count):
        text = "" if number % 17 == 0 else " ".join(draw.choices(words, k=draw.randrange(1, 40)))
        text = texts[-1] if number % 23 == 1 else text
        record = {"reviewerID": str(number), "reviewText": text, "overall": float(draw.randrange(1, 6))}
        lines.append(repr(record) if draw.random() < 0.5 else json.dumps(record, ensure_ascii=draw.random() < 0.5))
        texts.append(text)
    for _ in range(bad):
        lines.insert(draw.randrange(1, len(lines)), '{"reviewText": "cut')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sums(folder):
    """What a folder holds, by the name of the file."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".npy", ".jsonl")
    }


def here(inputs, out, options, workers=2, **more):
    with prepare.processes(workers) as spread:
        return prepare.prepare([str(item) for item in inputs], out, options, spread, **more)


def killed_at(name):
    def write(path):
        if path.name == name:
            raise UserError("killed")
        return atomic(path)

    return write


def alone(expand, do, items):
    """A spread that stays in this process."""
    for item in items:
        yield from map(do, expand(item))


def command(reviews, out):
    return [
        sys.executable,
        "-m",
        "mlstm_jax",
        "corpus",
        str(reviews),
        "--out",
        str(out),
        "--shards",
        "4",
        "--workers",
        "2",
    ]
