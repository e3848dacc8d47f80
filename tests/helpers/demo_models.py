"""Models for the page: the planted one with a record that fits it, saved where `load` finds both."""

import dataclasses

from helpers.planted_model import HIDDEN, UNIT, random_weights, smileys
from helpers.unit_records import RECORD
from mlstm_jax import unit_record


def with_records(folder):
    """The model of smileys, saved with the record of its unit, and one of a unit that tells nothing."""
    model = smileys()
    model.save(folder)
    about = dict(digest=model.digest, coefficients=(0.0,) * HIDDEN, accuracy_majority=0.5)
    good = dict(unit=UNIT, sign=1, mean_negative=-1.0, mean_positive=1.0, deviation=0.5, threshold=0.0, a=4.0, b=0.0)
    good |= dict(accuracy_alone=0.9, interval_alone=(0.88, 0.92))
    weak = dict(task="imdb", accuracy_alone=0.51, interval_alone=(0.48, 0.53))
    for fields in (good, weak):
        unit_record.save(dataclasses.replace(RECORD, **about, **fields), folder / "units")
    return folder


def without_record(folder):
    """Random weights of the same size, of which nothing is known."""
    random_weights().save(folder)
    return folder
