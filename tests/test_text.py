"""Laws of the framing: any text becomes one line of bytes, and any bytes become text and come back."""

import html
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlstm_jax.text import EMPTY, frame, show, to_bytes, to_text

# Every string that Python can hold, lone surrogates and NUL included; and strings that look like html.
anything = st.text(st.characters()) | st.text("&#xX;0123456789amplt<br />nbsp\n \t\u00a0")
unhurried = settings(deadline=None)


@unhurried
@given(anything)
@example("\ud800 \udfff \udc80 \x00")
@example("&#10;&#xa;&NewLine;&#13;")
@example("&#" + "1" * 5000 + ";")
@example("&#x" + "f" * 5000)
@example("&#" + "0" * 5000 + "65;")
def test_any_text_becomes_one_line_between_its_pads(text):
    framed = frame(text)
    assert framed.startswith(b"\n ") and framed.endswith(b" ")
    assert framed.count(b"\n") == 1
    inside = framed[2:-1].decode("utf-8", "surrogateescape")
    assert inside == inside.strip()


@unhurried
@given(st.text() | st.text("&#xX;0123456789amplt<br />nbsp\n \t\u00a0"))
def test_frame_is_unescape_one_line_strip_and_pads_in_that_order(text):
    text = html.unescape(re.sub(r"<br\s*/?>", " ", text))
    assert frame(text) == ("\n " + re.sub("\r\n?|\n", " ", text).strip() + " ").encode()


@unhurried
@given(anything)
def test_a_text_is_empty_exactly_where_its_frame_holds_nothing(text):
    assert (frame(text) == EMPTY) == (frame(text) == b"\n  ")


@pytest.mark.parametrize(
    "text, framed",
    [
        ("", "\n  "),
        ("x", "\n x "),
        ("one\ntwo\n\nfour   ", "\n one two  four "),
        ("one\r\ntwo\ttab\r", "\n one two\ttab "),
        ("one\rtwo\n\rthree&#13;&#10;four", "\n one two  three four "),
        ("one\u0085two\u2028three\x0bfour", "\n one\u0085two\u2028three\x0bfour "),
        ("a&#10;b&#xA;c&NewLine;", "\n a b c "),
        ("&nbsp; a&nbsp;b &nbsp;", "\n a\u00a0b "),
        ("a &lt;br /&gt; b<br />c", "\n a <br /> b c "),
        ("<br>a<BR/>b<br  /><br\n>c<br x><b>", "\n a b  c<br x><b> "),
        ("&amp;lt; stays escaped once", "\n &lt; stays escaped once "),
        ("&quot;AT&amp;T&quot; &copy &unknown; 5 & 6", '\n "AT&T" © &unknown; 5 & 6 '),
        ("&#0; &#xD800; &#99999999;", "\n \ufffd \ufffd \ufffd "),
    ],
)
def test_frame_by_example(text, framed):
    assert frame(text) == framed.encode()


def test_golden_texts_frame_to_the_bytes_behind_the_golden_features(golden):
    texts = json.loads((golden / "openai" / "texts.json").read_text(encoding="utf-8"))
    framed = [frame(text) for text in texts]
    assert framed[0] == b"\n This is the best product I have ever bought, I love it! "
    assert framed[3] == b'\n A caf\xc3\xa9 table & two chairs: "sturdy" they said <br /> not so. '
    assert framed[4] == b"\n Line one line two  line four "
    assert framed[5] == b"\n leading and trailing spaces "
    assert framed[6].startswith(b"\n \xc3\x9cn\xc3\xafc\xc3\xb6d\xc3\xa9 \xe2\x98\x83 \xe2\x80\x94 \xe6\x97\xa5")
    assert framed[8] == b"\n  "
    assert framed == [("\n " + html.unescape(t).replace("\n", " ").strip() + " ").encode() for t in texts]


@unhurried
@given(st.binary())
@example(b"\xed\xa0\x80 \xff\xfe \xf0\x9f")
def test_any_bytes_come_back_from_text(data):
    assert to_bytes(to_text(data)) == data


@unhurried
@given(st.text())
def test_text_comes_back_from_bytes(text):
    assert to_text(to_bytes(text)) == text


@unhurried
@given(anything)
def test_any_text_can_be_encoded(text):
    assert to_text(to_bytes(to_bytes(text).decode("utf-8", "surrogateescape"))) == to_text(to_bytes(text))


@unhurried
@given(st.binary(min_size=1))
@example(b"caf\xe9 & \xff\xc3")
def test_framing_keeps_invalid_bytes(data):
    text = to_text(b"<" + data.translate(None, b"\n\r&<") + b">")
    assert frame(text) == b"\n " + to_bytes(text) + b" "


def test_only_what_utf8_cannot_hold_is_replaced():
    assert to_bytes("a\ud800b\udfff") == b"a\xef\xbf\xbdb\xef\xbf\xbd"
    assert to_bytes("\udc80\udcff") == b"\x80\xff"


@unhurried
@given(st.binary())
@example(b"\xed\xa0\x80\x80\xff")
def test_show_gives_valid_utf8_and_keeps_what_is_valid(data):
    shown = show(data)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert show(shown.encode("utf-8")) == shown
