"""Which column of a table, or key of a record, holds the text and which the label: as named, or by the usual names."""

import difflib
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mlstm_jax.errors import UserError
from mlstm_jax.text import printable

TEXT_KEYS = ("reviewText", "text", "review_body", "sentence", "review", "content")
LABEL_KEYS = ("overall", "rating", "star_rating", "label", "stars", "sentiment", "polarity")


class Keys(NamedTuple):
    """Names of the text and of the label in a record; None finds them by their usual names."""

    text: str | None = None
    label: str | None = None


def find_keys(there: list[str], keys: Keys, where: str, what: str, advice: str = "") -> Keys:
    """The keys by which records are read, given the names that are there: as they are written, else loosely.

    Raises UserError where they do not say where the text is, or say it twice, beginning with `where`; `what` is what
    they are called, `advice` what else may be done where none is a usual name.
    """
    text = _find([keys.text] if keys.text else TEXT_KEYS, there, where, what)
    label = _find([keys.label] if keys.label else [key for key in LABEL_KEYS if key != text], there, where, what)
    nearest = next((near for key in TEXT_KEYS if (near := _nearest(key, there))), None)
    usual, near = ", ".join(TEXT_KEYS), f" (is it {nearest!r}?)" if nearest else ""
    name = f"none of {usual} is here; name the text with `text_key`, one of: {listed(there)}{near}{advice}"
    if not text and not keys.text:
        raise UserError(f"{where}: {name}")
    for key, found in ((keys.text, text), (keys.label, label)):
        near = f"; did you mean {_nearest(key, there)!r}?" if key and _nearest(key, there) else ""
        if not found and key:
            raise UserError(f"{where}: no {what} {key!r}; there are: {listed(there)}{near}")
    if text == label:
        raise UserError(f"{where}: {text!r} cannot be both the text and the label")
    return Keys(text, label)


def find_name(name: str, there: list[str], where: str) -> str:
    """The column that is meant by a name: exactly, else loosely. Raises UserError where there is none, or several."""
    found = _find([name], there, where, "column")
    near = f"; did you mean {_nearest(name, there)!r}?" if _nearest(name, there) else ""
    if not found:
        raise UserError(f"{where}: no column {name!r}; there are: {listed(there)}{near}")
    return found


def distinct(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """The names of columns, no two equal and none of `taken`: the second `a` becomes a_2, or the next that is free."""
    used, others, count, found = {*taken}, {*taken, *names}, Counter[str](), []
    for name in names:
        free = name
        while free in used or (free != name and free in others):
            count[name] += 1
            free = f"{name}_{count[name] + 1}"
        used.add(free)
        found.append(free)
    return found


def listed(names: list[str]) -> str:
    """Names for an error, shortened."""
    return textwrap.shorten(printable(", ".join(names)) or "nothing", 300, placeholder=" ...")


def has_usual_name(there: list[str]) -> bool:
    """Whether a name is one by which texts or labels are found."""
    return not {_loose(key) for key in (*TEXT_KEYS, *LABEL_KEYS)}.isdisjoint(map(_loose, there))


def _find(wanted: Sequence[str], there: list[str], where: str, what: str) -> str | None:
    """The first of the wanted names that is there: exactly, else whatever its case, spaces and underscores."""
    for alike in (str, _loose):
        for key in wanted:
            found = [name for name in there if alike(name) == alike(key)]
            twice = f"more than one {what} is named {key!r}" + (f": {listed(found)}" if {*found} != {key} else "")
            if len(found) >= 2:
                raise UserError(f"{where}: {twice}")
            if found:
                return found[0]
    return None


def _nearest(key: str, there: list[str]) -> str | None:
    """The name that is most like a key, or None."""
    names = {_loose(name): name for name in there}
    return next((names[name] for name in difflib.get_close_matches(_loose(key), names, 1)), None)


def _loose(name: str) -> str:
    return re.sub(r"[\s_]", "", name).casefold()
