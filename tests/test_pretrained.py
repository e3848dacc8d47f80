"""The model that comes with the package: its record, its card and what its unit is right on."""

import json
import re

import numpy as np
import pytest
from scipy.stats import spearmanr

import mlstm_jax
from helpers.programs import ROOT
from mlstm_jax import tasks, unit_record
from mlstm_jax.inference import language_model

FOLDER = language_model.PRETRAINED
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """It, where no other evaluation has left a record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield mlstm_jax.load()


def test_it_is_small_and_its_card_and_record_are_of_its_weights(shipped):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {path.name for path in files} == {
        *("LICENSE-weights", "README.md", "amazon.json", "config.json", "model.safetensors"),
    }
    record = shipped.unit
    about = json.loads((FOLDER / "config.json").read_text())
    assert shipped.digest == record.digest == about["digest"] and f"`{shipped.digest}`" in CARD
    assert about["units"] == [json.loads(json.dumps(unit_record.summary(record)))]
    low, high = record.interval_alone
    assert f"{record.accuracy_alone:.1%} [{low:.1%}, {high:.1%}]" in CARD
    assert f"{shipped.validation_bits_per_byte:.4f}" in CARD
    assert not unit_record.is_weak(record) and record.accuracy_alone > 0.7 and low > 0.65


def test_its_unit_tells_praise_from_complaint(shipped):
    said = shipped.predict(["Great phone. Easy to use, long battery life.", "It broke after a week. A waste of money."])
    assert list(said.label) == ["positive", "negative"]
    assert said.probability[0] > 0.7 and said.probability[1] < 0.4


def test_held_it_writes_praise_or_not(shipped):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    scores, ks = [], np.repeat([-3, 3], 40)
    for k in (-3, 3):
        texts = shipped.generate("This ", num=40, length=200, temperature=0.7, seed=1, sentiment=k)
        scores += [SentimentIntensityAnalyzer().polarity_scores(text)["compound"] for text in texts]
    assert spearmanr(ks, scores).statistic > 0.1


def test_the_card_gives_its_accuracy_on_packaged_imdb_reviews(shipped):
    """On the first 250 test texts of each class: they stand in order of their class."""
    (stated,) = re.findall(r"the first 250 of each class, it is right on (\d\d\.\d) %", CARD)
    test = tasks.load("imdb", None).test
    places = np.concatenate([np.flatnonzero(test.labels == label)[:250] for label in (0, 1)])
    labels = shipped.predict([test.texts[place] for place in places]).label
    assert 100 * np.mean((labels == "positive") == (test.labels[places] == 1)) == pytest.approx(float(stated), abs=0.5)


def test_what_the_readme_says_of_it_is_what_its_record_says(shipped):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    low, high = shipped.unit.interval_alone
    assert f"{shipped.unit.accuracy_alone:.1%} [{low:.1%}, {high:.1%}]" in readme
