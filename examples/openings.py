"""Cut reviews to their openings: the first sentences, at most 240 bytes, one JSON line each.

python examples/openings.py reviews.jsonl openings.jsonl

What a reviewer says first is what he thinks, so that sentiment makes up more of what is to be predicted than in whole
reviews. A review's title is best in front of it, as its first sentence.
"""

import json
import re
import sys
from pathlib import Path

import tyro

from mlstm_jax.cli import program
from mlstm_jax.corpus.readers import read_texts
from mlstm_jax.disk import atomic
from mlstm_jax.errors import UserError
from mlstm_jax.text import to_bytes

MOST = 240  # bytes of an opening
LEAST = 60  # characters; where all whole sentences together are shorter, the cut is between two words


def opening(text: str) -> str:
    """The text, or the whole sentences among its first `MOST` bytes, or the words there."""
    text = text.strip()
    if len(to_bytes(text)) <= MOST:
        return text
    head = to_bytes(text)[:MOST].decode(errors="ignore")
    # The character after the cut decides whether its last sentence is whole.
    ends = [found.end() for found in re.finditer(r"[.!?]+(?=\s)", text[: len(head) + 1])]
    return head[: ends[-1]] if ends and ends[-1] > LEAST else head.rsplit(maxsplit=1)[0]


def main(reviews: Path, out: Path, /) -> None:
    """Write the openings of a file of reviews.

    Args:
        reviews: The reviews, in any format that `mlstm corpus` reads.
        out: The file to write, one JSON object a line. It must not exist.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new file")
    count = 0
    with atomic(out) as file:
        for text in read_texts(reviews, log=program.log):
            file.write(json.dumps({"text": opening(text)}).encode() + b"\n")
            count += 1
    program.log(f"wrote the openings of {count:,} reviews to {out}")


if __name__ == "__main__":
    program.script(lambda: tyro.cli(main, args=sys.argv[1:]))
