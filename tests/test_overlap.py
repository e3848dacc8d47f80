"""Which texts of labelled sets stand in a training text."""

import importlib.util
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from helpers.files import put
from mlstm_jax import tasks

SPEC = importlib.util.spec_from_file_location("overlap", Path(__file__).parents[1] / "examples/overlap.py")
assert SPEC and SPEC.loader
overlap = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(overlap)

NUMBERS = [f"word{n}" for n in range(40)]


def test_a_text_is_found_by_its_words_and_a_long_one_by_its_first():
    short, long, commonplace = "One two, three four five SIX!", " ".join(NUMBERS), "one two three four"
    training = ["nothing", "Before: one -- two three\tfour five; six after", " ".join(["x", *NUMBERS[:20], "other"])]
    found = overlap.matches(training, [short, long, commonplace, "one two three four five seven"])
    assert [(match.place, len(match.words)) for match in found] == [(1, 6), (2, 20)]
    assert not overlap.matches([" ".join(NUMBERS[:19])], [long])


words = st.lists(st.sampled_from("a b c d e f".split()), min_size=1, max_size=30)


@given(texts=st.lists(words, max_size=6), before=words, chosen=st.integers(0, 5))
def test_whatever_stands_in_a_training_text_is_found(texts, before, chosen):
    training = [" ".join(before + (texts[chosen] if chosen < len(texts) else []))]
    found = {match.words for match in overlap.matches(training, map(" ".join, texts))}
    read = training[0].split()
    within = lambda wanted: any(read[k : k + len(wanted)] == wanted for k in range(len(read)))
    expected = {tuple(text[:20]) for text in texts if len(text) >= 5 and within(text[:20])}
    assert found == expected


def test_the_packaged_test_texts_in_a_file_are_counted(tmp_path, capsys):
    task = tasks.load("rotten_tomatoes", None)
    long = [text for text in (*task.dev.texts, *task.test.texts) if len(overlap.words_of(text)) > 8][:3]
    rows = [json.dumps({"text": text}) for text in (*long, *task.train.texts[:50])]
    overlap.main(Path(put(tmp_path / "read.jsonl", "\n".join(rows))), task=("rotten_tomatoes",), show=2)
    said = capsys.readouterr().out.splitlines()
    assert ", 3 found, 3 of 6 words or more" in said[0] and len(said) == 3
