"""Laws of records: a line of JSON, strict or loose, is read as JSON and Python read it, or said to be wrong."""

import ast
import json
import re
import subprocess
import sys
import time
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.files import any_text, complaint, line, packed, put, rows_of, unhurried
from mlstm_jax.corpus import lines, records
from mlstm_jax.corpus.readers import Chunk, Keys, parse, read_texts
from mlstm_jax.text import to_bytes, to_text

# Texts

json_suffix = pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])


@json_suffix
@packed
def test_json_lines_are_read_in_order(tmp_path, suffix, packing):
    texts = ["one", "two\nlines", "", "ünï\u2028cödé \u0085 \U0001f642"]
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    assert list(read_texts(put(tmp_path / f"a{suffix}{packing}", "\n".join(lines)))) == texts


@unhurried
@given(texts=st.lists(any_text, min_size=1), escaped=st.booleans())
def test_json_gives_back_any_text(folder, texts, escaped):
    lines = [json.dumps({"text": text}, ensure_ascii=escaped) for text in texts]
    path = put(folder / "a.json", b"\n\n".join(to_bytes(line) for line in lines))
    assert [to_bytes(text) for text in read_texts(path)] == [to_bytes(text) for text in texts]


@unhurried
@given(texts=st.lists(any_text, min_size=1))
def test_printed_dicts_give_back_any_text(folder, texts):
    path = put(folder / "loose.json", "\n".join(repr({"id": 1, "text": text, "rating": 5.0}) for text in texts))
    assert list(read_texts(path)) == texts


@unhurried
@given(texts=st.lists(any_text, min_size=1), escaped=st.booleans(), raw=st.sets(st.sampled_from("bftu")))
def test_json_with_raw_control_characters_gives_back_any_text_or_nothing(folder, texts, escaped, raw):
    """As of those who write JSON by hand: what must be escaped is not, here and there."""
    lines = [json.dumps({"text": text, "rating": 5.0}, ensure_ascii=escaped) for text in texts]
    for escape, control in {"\\t": "\t", "\\b": "\b", "\\f": "\f", "\\u000b": "\v"}.items():
        if escape[1:2] in raw:
            lines = [re.sub(r"(?<!\\)((?:\\\\)*)" + re.escape(escape), rf"\g<1>{control}", line) for line in lines]
    rows, error = rows_of(put(folder / "raw.json", b"\n".join(to_bytes(line) for line in lines)))
    assert error is None and [(to_bytes(row[1]), row[3]) for row in rows] == [(to_bytes(text), None) for text in texts]


# Keys and labels


def test_labels_are_texts_or_none(tmp_path):
    labels = [
        "5.0",
        "5",
        '"good"',
        "null",
        "true",
        "-0.0",
        "1e5",
        "[1]",
        "{}",
        "NaN",
        "1e400",
        "1" + "0" * 30,
        '"\\ud800"',
    ]
    expected = ["5.0", "5", "good", None, "True", "-0.0", "100000.0", None, None, None, None, None, "\ud800"]
    path = put(tmp_path / "a.json", "\n".join(f'{{"text": "x", "label": {label}}}' for label in labels))
    assert [row[2] for row in rows_of(path)[0]] == expected


def test_a_complex_number_is_no_label(tmp_path):
    path = put(tmp_path / "a.json", "{'text': 'x', 'label': 2j}\n{'text': 'y', 'label': 1e308+1e308j}")
    assert rows_of(path)[0] == [(1, "x", None, None), (2, "y", None, None)]


def test_a_label_of_ones_own_is_found_or_missed(tmp_path):
    path = put(tmp_path / "a.json", '{"text": "x", "overall": 1, "mood": "glad"}\n{"text": "y"}')
    assert [row[2] for row in rows_of(path)[0]] == ["1", None]
    assert [row[2] for row in rows_of(path, Keys(None, "mood"))[0]] == ["glad", None]
    assert "line 1: no key 'mod'; there are: text, overall, mood" in rows_of(path, Keys(None, "mod"))[1]
    assert "'text' cannot be both" in rows_of(path, Keys(None, "text"))[1]
    assert rows_of(path, Keys("mood", None))[0][0] == (1, "glad", "1", None)


@pytest.mark.parametrize("key", ["mood", "it's", 'a"b', "a b", "naïve", "a\\b", "x" * 99])
def test_any_name_may_be_the_key(tmp_path, key):
    record = {"text": "other", key: "one"}
    for shown in (json.dumps(record), repr(record)):
        assert list(read_texts(put(tmp_path / "a.json", shown), key)) == ["one"]


def test_json_without_a_usual_key_says_how_to_name_it(tmp_path):
    path = put(tmp_path / "a.json", '\n{"title": "x", "body": "y"}')
    assert complaint(path).startswith("FILE, line 2: none of reviewText, ")
    assert complaint(path).endswith("name the text with `text_key`, one of: title, body")
    assert complaint(path, "bdoy") == "FILE, line 2: no key 'bdoy'; there are: title, body; did you mean 'body'?"


def test_a_file_whose_first_megabyte_is_no_record_is_all_bad(tmp_path):
    path = put(tmp_path / "a.json", b"x" * lines.HEAD + b'\n{"text": "fine"}\n')
    assert complaint(path).startswith("FILE, line 1: not JSON")
    assert rows_of(path)[0][1][3].endswith("name it with `text_key`")
    assert rows_of(path, Keys("text"))[0][1][1] == "fine"


# Lines that are bad, or odd

BAD_LINES = [
    (b"not json", "not JSON (Expecting value"),
    (b'{"text": "cut o', "not JSON (Unterminated string"),
    (b"{'text': 'cut o", "not JSON (Expecting property name"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON ("),
    (b"[" * 100_000, "not JSON ("),
    (b'{"text":' * 100_000, "not JSON ("),
    (b"{'text':" * 100_000, "not JSON ("),
    (b"{" + b"-" * 100_000 + b"1}", "not JSON ("),
    (b"{'text': __import__('os').getcwd()}", "not JSON ("),
    (b"{'text': 'x' % ()}", "not JSON ("),
    (b"{[]: 'x'}", "not JSON ("),
    (b'{"text": "100 \\ud83d\\udcaf a\\/b", "verified": True}', "not JSON ("),
    (b'{"text": "100 \\ud83d\\udcaf",}', "not JSON ("),
    (b'{"text": "\\x41"}', "not JSON ("),
    (b"{'label': 1" + b"0" * 5000 + b", 'text': 'x'}", "not JSON ("),
    (b"{'text': '\x00'}", "not JSON ("),
    (b"{'text': '\\\xff'}", "not JSON ("),
    (b"\xff", "not JSON ("),
    (b"\xff\xfe{\x00}\x00", "not JSON ("),
    (b'\xc2\xa0{"text": "x"}', "not JSON ("),
    (b'["text"]', "not a JSON object"),
    (b"{'text'}", "not a JSON object"),
    (b"3", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"text": 5}', "'text' is not a text"),
    (b"{'text': 5}", "'text' is not a text"),
    (b'{"text": NaN}', "'text' is not a text"),
    (b'{"text": ["x"]}', "'text' is not a text"),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_bad_line_of_json_is_named_and_those_around_it_are_read(tmp_path, packing, line, message):
    path = put(tmp_path / f"a.jsonl{packing}", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    assert complaint(path).startswith(f"FILE, line 3: {message}")
    (first, bad, last), error = rows_of(path)
    assert (first, last, error) == ((1, "fine", None, None), (4, "fine", None, None), None)
    assert bad[:3] == (3, to_text(line), None) and bad[3].startswith(message) and "\n" not in bad[3]


@pytest.mark.parametrize(
    "line, text",
    [
        (b'{"text": null}', ""),
        (b"{'text': None}", ""),
        (b'{"title": "x"}', ""),
        (b"{}", ""),
        (b'{"text": "a", "text": "b"}', "b"),
        (b"{'text': 'a', \"text\": 'b'}", "b"),
        (b'{"text": "a\\u0000b"}', "a\x00b"),
        (b'{"text": "\\ud83d"}', "\ud83d"),
        (b'{"text": "Tab\there \\ud83d\\udcaf a\\/b \xc3\xa9", "verified": true}', "Tab\there \U0001f4af a/b \u00e9"),
        (b'{"text": "a\x0b\x00\\u0041", "n": NaN}', "a\x0b\x00A"),
        (b'{"text": "a\tb\xff"}', "a\tb\udcff"),
        (b'{"text": "\\ud83d\\ude42"}', "\U0001f642"),
        (b'{"text": "x", "n": NaN, "m": -Infinity, "l": 1e999}', "x"),
        (b'{"text": "x", "n": 1' + b"0" * 1000 + b"}", "x"),
        (b'{"text": "x", "n": ' + b"[" * 500 + b"]" * 500 + b"}", "x"),
        (b"{'text': 'a' 'b'}", "ab"),
        (b"{'text': u'a'}", "a"),
        (b"{'text': b'a'}", "a"),
        (b"{'text': r'\\n'}", "\\n"),
        (b"{'text': '''a'''}", "a"),
        (b"{'te' 'xt': 'a'}", "a"),
        (b"{'te\\x78t': 'a'}", "a"),
        (b"{'text': 'a\\/b\\d'}", "a\\/b\\d"),
        (b"{'text': '\\101\\N{BULLET}\\u2028'}", "A\u2022\u2028"),
        (b"{ 'text'\t:\x0c'a',}  # a comment", "a"),
        (b"{'x': 1_000, 'text': 'a', 'y': 0x1F, 'z': (1, 2j)}", "a"),
    ],
)
def test_what_is_odd_but_clear_is_read(tmp_path, line, text):
    rows, error = rows_of(put(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + line))
    assert error is None and rows[1] == (2, text, None, None)


# Loose lines

KEYS = Keys("reviewText", "overall")

scalar = (
    any_text
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.sampled_from([10**18, -(10**18), 10**19, 1e308, 1e-300])
)

value = scalar | st.lists(scalar, max_size=3) | st.dictionaries(any_text, scalar, max_size=3) | st.tuples(scalar)

name = st.sampled_from(["reviewText", "overall", "asin"])

printed = st.dictionaries(name | any_text, value, max_size=5).map(repr)

tokens = r"""
    'reviewText' "reviewText" 'overall' 'x' "y" '' u b r f ' " : : , , { } [ ] 5 5.0 -1 0x1 1_0 1e5 007 . - None True
    nan inf ( ) # \ \' \n \x41 \x4 \u00e9 \ud800 \N{BULLET} \101 \d é ''' '''x''' ...
""".split()

token = st.sampled_from([*tokens, *" \t\x0c\r\x00\x1f\u00a0\u2028", ": ", ", ", "'overall': ", "'reviewText': "])

assembled = st.lists(token, max_size=14).map(lambda parts: "{" + "".join(parts) + "}")


@st.composite
def mutated(draw):
    text = draw(printed)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(token | st.just("")) + text[place + draw(st.integers(0, 2)) :]
    return text


loose_line = (printed | mutated() | assembled).map(lambda text: text.encode())


def literal(line):
    """Text, label and what is wrong, as `ast.literal_eval` has it; None where it has no text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            record = ast.literal_eval(line.strip().decode())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    text = record.get("reviewText") if isinstance(record, dict) else 0
    text = "" if text is None else to_text(text) if isinstance(text, bytes) else text
    return (text, records._label(record.get("overall")), None) if isinstance(text, str) else None


@settings(deadline=None, max_examples=1500)
@given(line=loose_line)
@example(line=b"{'reviewText': 'a' 'b'}")
@example(line=b"{'reviewText': 'a', 'review''Text': 'b'}")
@example(line=b"{'reviewText': 'a', 'review\\x54ext': 'b'}")
@example(line=b"{'reviewText': 'a', u'reviewText': 'b'}")
@example(line=b"{'reviewText': 'a', 'reviewText': None}")
@example(line=b"{'reviewText': 'a', 'reviewText': 'b', 'overall': 1, \"overall\": 2.50}")
@example(line=b"{'overall': -0, 'reviewText': '\\\\x41\\\\'}")
@example(line="{'overall': '\\u00e9é\\n', 'x': [1, 'a'], 'y': {'z': 1}, }".encode())
def test_a_plain_line_is_what_python_reads_or_is_left_to_python(line):
    if match := records._plain_record(KEYS).fullmatch(line):
        text = "" if match[1] is None else records._string(match[1])
        label = None if match[2] is None else records._plain_label(match[2])
        assert (text, label, None) == literal(line)


@settings(deadline=None, max_examples=500)
@given(line=loose_line)
def test_a_loose_line_is_read_as_python_reads_it(line):
    expected = literal(line)
    if expected and b"\n" not in line:
        row = list(parse(Chunk(0, 0, 1, "json", line, KEYS)))
        if re.match(rb"\s*\{\s*[ubr]{0,2}'", line):
            assert [each[:4] for each in row] == [(1, *expected)]
        else:  # what is no JSON either is wrong, since JSON's escapes are not Python's
            assert row[0][3] or json.loads(to_text(line.strip()), strict=False).get("reviewText") in (row[0][1], None)


short_text = st.text(st.characters(max_codepoint=0xFFFF))  # of the rest Python prints some as \U...: rare

number = st.floats(0, 9).map(lambda x: round(x, 2)) | st.integers(-(10**9), 10**9)

plain = short_text | number | st.none() | st.booleans() | st.lists(number) | st.dictionaries(name, short_text)


@unhurried
@given(record=st.dictionaries(name, plain), text=short_text, overall=number)
def test_a_printed_review_is_a_plain_line(record, text, overall):
    line = repr(record | {"reviewText": text, "overall": overall}).encode()
    match = records._plain_record(KEYS).fullmatch(line)
    assert records._string(match[1]) == text and records._plain_label(match[2]) == str(overall)


@pytest.mark.parametrize(
    "line",
    [
        b"{'a': " + b"'x', " * 200_000,
        b"{" + b"'a': 'x', " * 100_000,
        b"{'reviewText': '" + b"\\n" * 500_000,
        b"{'reviewText': '" + b"\\\\" * 500_000,
        b"{'a': [" + b"1, " * 300_000,
        b"{'a': {" + b"'b': 1, " * 100_000,
        b"{'a': " + b"1" * 1_000_000,
        b"{'a'" + b" " * 1_000_000,
        b"{'" * 300_000,
    ],
)
def test_no_line_takes_long(line):
    start = time.perf_counter()
    assert records._plain_record(KEYS).fullmatch(line) is None
    assert time.perf_counter() - start < 1


def test_a_long_line_is_not_given_to_pythons_parser():
    """It would take 500 times as much memory."""
    odd, plain = (b"{'reviewText': " + prefix + b"'" + b"x" * records.LITERAL + b"'}" for prefix in (b"u", b""))
    first, second = parse(Chunk(0, 0, 1, "json", odd + b"\n" + plain, KEYS))
    assert first[1] == odd.decode() and first[3].startswith("not JSON") and second[1] == "x" * records.LITERAL


# JSON with and without orjson


@unhurried
@given(lines=st.lists(line, max_size=20))
@example(lines=[line for line, _ in BAD_LINES])
@example(
    lines=[
        b'{"text": "x", "label": %s}' % n for n in (b"-0", b"-0.0", b"1" + b"0" * 20, b"18446744073709551615", b"NaN")
    ]
)
def test_json_is_read_alike_with_and_without_orjson(lines):
    lines = [line.replace(b"\n", b"") for line in lines]
    chunk = Chunk(0, 0, 1, "json", b"\n".join(lines), Keys("text", "label"))
    expected = list(parse(chunk))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_loads", lambda: lambda line: json.loads(to_text(line), strict=False))
        assert list(parse(chunk)) == expected


CTRL_C_WHILE_ORJSON_IS_IMPORTED = """
import signal, sys
from mlstm_jax.corpus import records

class CtrlC:
    def find_spec(name, path=None, target=None):
        if name == "orjson":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC)
try:
    records._loads()
except KeyboardInterrupt:
    print("orjson.orjson" in sys.modules)
"""


def test_ctrl_c_waits_until_orjson_is_imported():
    """It crashes where an exception comes while it is."""
    pytest.importorskip("orjson")
    done = subprocess.run([sys.executable, "-c", CTRL_C_WHILE_ORJSON_IS_IMPORTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
