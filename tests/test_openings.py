"""Openings are whole sentences, or words, from the beginning of a text."""

import importlib.util
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from helpers.files import put
from mlstm_jax.text import to_bytes

SPEC = importlib.util.spec_from_file_location("openings", Path(__file__).parents[1] / "examples/openings.py")
assert SPEC and SPEC.loader
openings = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(openings)


def test_an_opening_ends_with_a_sentence_or_else_between_words():
    sentence = "I have used it for " + "very " * 12 + "long."
    assert openings.opening(" Short. And whole ") == "Short. And whole"
    assert openings.opening(" ".join([sentence] * 4)) == " ".join([sentence] * 2)
    assert openings.opening("Bad. " + "word " * 80) == "Bad. " + " ".join(["word"] * 46)
    assert openings.opening("x" * 300) == "x" * 240
    assert openings.opening("x" * 239 + ". and more") == "x" * 239 + ".", "a sentence that just fits"
    assert openings.opening("x" * 239 + ".com and more") == "x" * 239 + ".", "no space to cut at"


@given(st.text(max_size=400) | st.lists(st.sampled_from(["good. ", "\U0001f600", "so ", "!? ", "x" * 90])).map("".join))
def test_an_opening_is_the_beginning_of_its_text_and_short(text):
    cut = openings.opening(text)
    assert text.strip().startswith(cut) and len(to_bytes(cut)) <= openings.MOST
    assert bool(cut) == bool(text.strip())


def test_the_program_writes_a_line_a_review_and_overwrites_nothing(tmp_path, run_here):
    reviews = put(tmp_path / "reviews.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ("Good.", "a " * 200)))
    ended = run_here("examples/openings.py", reviews, tmp_path / "out.jsonl")
    assert ended.status == 0, ended.err
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == ["Good.", " ".join(["a"] * 119)]
    again = run_here("examples/openings.py", reviews, tmp_path / "out.jsonl")
    assert again.status == 2 and "exists already" in again.err
