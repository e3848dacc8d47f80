"""JSON that is one array, or objects over several lines, to one object a line, in memory for one object."""

import re
from collections.abc import Iterable, Iterator

from mlstm_jax.errors import UserError

# An array that begins with an object or is empty; an object whose first line ends with its brace, or with a comma.
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*+(?:\[\s*+[{\]]|\{(?:[^\n]*,)?[ \t\r]*\n\s*+[\"'}])")
# All up to a bracket, or to a quote that is not closed on its line. JSON has no other quotes than ", Python has.
_INSIDE = re.compile(rb"""(?:[^][{}"']++|"(?:[^"\\\n]++|\\.)*+"|'(?:[^'\\\n]++|\\.)*+')*+""")
_SEPARATORS = b" \t\r\n,\xef\xbb\xbf"


def is_document(head: bytes) -> bool:
    """Whether a file's first bytes begin an array of objects, or an object over several lines."""
    return _BEGIN.match(head) is not None


def one_a_line(pieces: Iterable[bytes], name: str, longest: int) -> Iterator[bytes]:
    """Every object of the arrays, or of those that stand alone, as a line; what else stands between them is one, too.

    Raises UserError, after all objects before it, for brackets and quotes that are not closed, and for an object of
    more than `longest` bytes.
    """
    data, place, done = bytearray(), 0, 0  # how far data are scanned, and how far they are given out
    arrays = depth = count = 0  # brackets that are open around the object, and within it

    def broken(why: str) -> UserError:
        advice = "one object a line is read, too, as jq -c '.[]' writes it"
        return UserError(f"{name}: JSON is damaged at object {count + 1}: {why}; {advice}")

    for piece in pieces:
        data += piece
        found, damage = [], None
        while not damage and (inside := _INSIDE.match(data, place)) and (place := inside.end()) < len(data):
            mark = data[place : place + 1]
            if mark in b"\"'":
                if data.find(b"\n", place) < 0:
                    break  # the rest of the string is to come
                damage = broken("a quote is not closed on its line")
            elif depth == 0:
                if between := data[done:place].strip(_SEPARATORS):
                    found.append(between)
                depth, arrays = int(mark == b"{"), arrays + (mark == b"[") - (mark == b"]")
                done = place if depth else place + 1
                damage = broken("a bracket is closed that was not opened") if mark == b"}" or arrays < 0 else None
            else:
                depth += 1 if mark in b"[{" else -1
                if depth == 0:
                    found.append(data[done : place + 1])
                    done, count = place + 1, count + 1
            place += 1
        yield b"".join(line.replace(b"\n", b" ") + b"\n" for line in found)
        if len(data) - done > longest:
            damage = damage or broken(f"it is longer than {longest >> 20} MB")
        if damage:
            raise damage
        del data[:done]
        place, done = place - done, 0
    if between := data[done:].strip(_SEPARATORS):
        if depth == 0 and place == len(data):
            yield bytes(between.replace(b"\n", b" ") + b"\n")
    if depth or arrays or place < len(data):
        raise broken("the file ends within it")
