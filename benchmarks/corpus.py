"""Preparing and streaming a corpus: reviews of the 2014 format to shards, and batches from the shards.

python -m benchmarks.corpus [--megabytes 500] [--workers 2]

The peer is what the older programs did: one process, `ast.literal_eval` of every line (they used `eval`) and
`html.unescape`, with nothing written. It reads the same lines, round by round in turn with ours.
"""

import ast
import html
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import tyro

from mlstm_jax.corpus import batches, packaged, prepare, shards


def dump(path: Path, megabytes: int, loose: bool) -> int:
    """Write a synthetic dump; its size in bytes. Texts are cut from the packaged reviews."""
    draw, texts, size = random.Random(0), [review.text for review in packaged.rows("imdb")], 0
    extra = ["&quot;so so&quot;", "<br />", "🙂", "naïve café", 'it\'s "quoted"', ""]
    with open(path, "wb") as file:
        while size < megabytes * 1_000_000:
            text = draw.choice(texts)[: draw.randrange(50, 1000)] + draw.choice(extra)
            record = {
                "reviewerID": f"A{draw.randrange(10**12):012}",
                "asin": f"{draw.randrange(10**10):010}",
                "reviewerName": "J. O'Neil",
                "helpful": [draw.randrange(9), 9],
                "reviewText": text,
                "overall": float(draw.randrange(1, 6)),
                "summary": text[:30],
                "unixReviewTime": draw.randrange(10**9),
                "reviewTime": "05 3, 2011",
            }
            line = ((repr(record) if loose else json.dumps(record)) + "\n").encode()
            size += file.write(line)
    return size


def plain(path: Path, limit: int) -> float:
    """Bytes a second of the plain loop, over the first `limit` bytes."""
    begun, size = time.perf_counter(), 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            html.unescape(ast.literal_eval(line)["reviewText"])
            size += len(line)
            if size > limit:
                break
    return size / (time.perf_counter() - begun)


def main(megabytes: int = 500, workers: int = 2, rounds: int = 5) -> None:
    """Print MB/s of the plain loop and of ours, the ratio in each round, and the rate of batches."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for kind in ("loose", "strict"):
            path = folder / f"{kind}.json"
            size, ratios, rates = dump(path, megabytes, kind == "loose"), [], []
            for number in range(rounds):
                peer = plain(path, size // 5)
                begun = time.perf_counter()
                with prepare.processes(workers) as spread:
                    prepare.prepare([str(path)], folder / f"{kind}{number}", prepare.Options(100), spread)
                rates.append(size / (time.perf_counter() - begun))
                ratios.append(rates[-1] / peer)
            print(
                f"{kind:6}  ours {statistics.median(rates) / 1e6:6.0f} MB/s, plain loop {peer / 1e6:5.0f} MB/s, "
                f"ours / plain {statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        train = shards.load(folder / "strict0")[:-2]
        cut = batches.Batches(shards.Mapped(folder / "strict0", train), 128, 256)
        check = lambda shard: shards.verify(folder / "strict0", train[shard])
        ready, count, begun = batches.stream(cut, 0, check), 0, time.perf_counter()
        while (seconds := time.perf_counter() - begun) < 5:
            next(ready)
            count += 1
        ready.close()
        print(f"batches {count * 128 * 256 / seconds / 1e6:6.0f} MB/s, SHA-256 of every shard included")


if __name__ == "__main__":
    tyro.cli(main)
