"""The model card: what is known of weights, as the README.md of a model hub."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlstm_jax.text import printable
from mlstm_jax.unit_record import describe_classes


def card(about: Mapping[str, Any], licences: Sequence[str] = ()) -> str:
    """A model card for a hub, from what is known of the weights; what is not known is said to be so.

    `licences` are the names of the files beside it under which the weights are given out.
    """
    unknown = "not known"
    size, units = about["model"], about["units"]
    of_bytes = size["inputs"] == size["outputs"] == 256
    bits = about["validation_bits_per_byte"]
    lines = [
        "---",
        "library_name: mlstm_jax",
        "pipeline_tag: text-generation",
        "tags: [mlstm, sentiment-neuron, byte-level, jax]",
        "---",
        f"# An mLSTM of {size['hidden']:,} units",
        "",
        "A byte-level multiplicative LSTM after Radford, Józefowicz and Sutskever 2017 (arXiv 1704.01444), to be "
        "opened with `mlstm_jax.load(FOLDER)`, `python eval_sst.py FOLDER` and `python sample.py FOLDER`."
        if of_bytes
        else f"A multiplicative LSTM (Krause et al. 2016, arXiv 1609.07959) that reads {size['inputs']} symbols and "
        f"predicts {size['outputs']}, to be opened with `mlstm_jax.load(FOLDER)` and read with `model.read(ids)`.",
        "",
        *(f"The licence of these weights is in {_cell(name)}.\n" for name in licences),
        "| | |",
        "| --- | --- |",
        f"| hidden units | {size['hidden']:,} |",
        f"| embedding width | {size['embed']:,} |",
        f"| parameters | {about['parameters']:,} |",
        f"| trained on | {_cell(about['trained_on'] or unknown)} |",
        f"| updates | {unknown if about['update'] is None else format(about['update'], ',')} |",
        f"| validation bits per byte | {unknown if bits is None else format(bits, '.4f')} |",
        f"| SHA-256 of the weights | `{about['digest']}` |",
        "",
        "## The unit that carries sentiment",
        "",
    ]
    if units:
        lines += [
            "| task | classes | unit | sign | accuracy, all units | accuracy, that unit alone | always guessing |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {_cell(unit['task'])} ({_cell(unit['note'])}) "
                f"| {_cell(describe_classes(unit['negative'], unit['positive']))} "
                f"| {unit['unit']} ({unit['feature']}) | {unit['sign']:+d} "
                f"| {unit['accuracy_all']:.1%} | {_alone(unit)} |"
                for unit in units
            ),
            "",
            "Sign +1: higher values are positive. `python sample.py FOLDER --sentiment +2` writes with the unit held.",
        ]
    elif of_bytes:
        lines += ["Not measured; `python eval_sst.py FOLDER` finds it."]
    else:
        lines += ["None: this is not a model of bytes."]
    return "\n".join(lines) + "\n"


def _alone(unit: Mapping[str, Any]) -> str:
    """Two cells: the unit's accuracy with its interval, where an older record has one, and that of guessing."""
    interval, majority = unit.get("interval_alone"), unit.get("accuracy_majority")
    measured = f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else ""
    return f"{unit['accuracy_alone']:.1%}{measured} | {'not known' if majority is None else format(majority, '.1%')}"


def _cell(text: str) -> str:
    """Text that is not ours as a cell of a table: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(printable(text).split()))
