"""Text to bytes and back: how a review becomes bytes of the model's one stream."""

import html
import re
import unicodedata

EMPTY = b"\n  "  # the frame around nothing
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_LINE_END = re.compile("\r\n|\n|\r")
_LINE_BREAK_TAG = re.compile(r"<[bB][rR]\s*+/?>")
_ENDLESS_REFERENCE = re.compile("(&#[0-9]{600})[0-9]+")


def frame(text: str) -> bytes:
    """A review as the model reads it: html-unescaped, on one line, stripped, "\\n " before and " " after, UTF-8.

    The same in training and evaluation (Radford et al. 2017, section 4). A line end (\\n, \\r\\n or \\r) and the tag
    <br /> are a space each; an escaped tag is text about a tag, and stays. Bytes that `decode` could not read as UTF-8
    come out as they went in; a lone surrogate, which no UTF-8 can hold, becomes U+FFFD.
    """
    if "<" in text:
        text = _LINE_BREAK_TAG.sub(" ", text)
    text = _unescape(text)
    text = _LINE_END.sub(" ", text) if "\r" in text else text.replace("\n", " ")
    return to_bytes("\n " + text.strip() + " ")


def to_bytes(text: str) -> bytes:
    """UTF-8 bytes, inverse of `to_text`."""
    try:
        return text.encode()  # nearly always, and ten times faster
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """Bytes as text for processing: invalid UTF-8 is kept, as the surrogates that `to_bytes` turns back into bytes."""
    return data.decode("utf-8", "surrogateescape")


def show(data: bytes) -> str:
    """Bytes as valid text for people: whatever is not UTF-8 shows as U+FFFD."""
    return data.decode("utf-8", "replace")


def _unescape(text: str) -> str:
    if "&" not in text:
        return text
    # Python refuses to read a decimal number of thousands of digits; 600 of them are no character either, as html says.
    return html.unescape(_ENDLESS_REFERENCE.sub(r"\1", text))


_SAFE_ON_TERMINAL = {"\n", "\t", "\u200d"}  # the last joins emoji


def printable(text: str) -> str:
    """Text that is not ours, safe on a terminal: what controls it, reorders text or is invisible shows as U+FFFD.

    Newlines and tabs stay. Lone surrogates, which no terminal takes, show as U+FFFD, too.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join("\ufffd" if unicodedata.category(c) in hidden and c not in _SAFE_ON_TERMINAL else c for c in text)
