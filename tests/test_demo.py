"""The page's server: a text that is typed is read as if it were new, and every page has its own."""

import csv
import io
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from helpers.demo_models import with_records, without_record
from helpers.files import unhurried
from helpers.planted_model import UNIT, smileys
from helpers.programs import ROOT
from mlstm_jax.cli import demo
from mlstm_jax.demo import choice, reading, server, session
from mlstm_jax.demo.reading import Reader
from mlstm_jax.demo.writing import PIECE, Writer
from mlstm_jax.errors import UserError
from mlstm_jax.inference import generate, language_model
from mlstm_jax.inference.options import SamplingOptions
from mlstm_jax.text import frame, to_text

MODEL = smileys()
LIVE = "ws://localhost:8000/live"
SOME = st.text(st.sampled_from("a:)( é😀"), max_size=90)


# Reading


WORDS = ("word " * 1000).strip()


def whole(data, unit=UNIT, feature="cell"):
    """A text read anew, and the values at its bytes."""
    reader = Reader(MODEL, unit, feature)
    reader.edit(data)
    list(reader.rest())
    return reader


def put_together(cells, new):
    """What a page has after new cells."""
    return cells[: new.start] + list(zip(new.characters, new.values, strict=True))


@st.composite
def edits(draw):
    """A text as it changes: something in it is taken away, and something put there; some are not read to their end."""
    text, found = "", []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, len(text)))
        text = text[:start] + draw(SOME) + text[end:]
        found.append((text, draw(st.integers(0, 3) | st.none())))
    return found


@unhurried
@given(edits(), st.sampled_from(["cell", "tanh_cell", "hidden"]), st.integers(0, 15))
def test_a_text_with_edits_is_read_as_one_that_is_new(edited, feature, unit):
    reader, cells = Reader(MODEL, unit, feature), []
    for text, pieces in edited:
        reader.edit(text.encode())
        cells = put_together(cells, reader.advance())
        for new in itertools.islice(reader.rest(), pieces):
            cells = put_together(cells, new)
    for new in reader.rest():
        cells = put_together(cells, new)
    anew = whole(edited[-1][0].encode(), unit, feature)
    np.testing.assert_array_equal(reader.values, anew.values)  # to the last bit
    for ours, theirs in zip(reader.state, anew.state, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "".join(character for character, _ in cells) == edited[-1][0]
    ends = np.cumsum([len(character.encode()) for character, _ in cells], dtype=int) - 1
    np.testing.assert_array_equal([value for _, value in cells], anew.values[ends])


@unhurried
@given(st.text(st.sampled_from("a:)( é😀"), max_size=9), st.sampled_from(["cell", "hidden"]))
def test_values_are_those_of_a_trace(text, feature):
    expected = MODEL.trace(text, feature)[:, UNIT]
    np.testing.assert_allclose(whole(frame(text), feature=feature).values, expected, rtol=1e-5, atol=1e-6)


def count_bytes(monkeypatch):
    """The bytes that each piece reads from now on."""
    counts, read = [], reading._read
    monkeypatch.setattr(
        reading, "_read", lambda w, data, count, state: counts.append(int(count)) or read(w, data, count, state)
    )
    return counts


def test_what_was_read_is_not_read_again(monkeypatch):
    reader = whole(frame(WORDS))
    counts = count_bytes(monkeypatch)
    for place, most in ((4999, 3), (4990, 12), (4000, 1050), (2500, 2550)):
        reader.edit(frame(WORDS[:place] + "x" + WORDS[place:]))
        counts.clear()
        list(reader.rest())
        assert 0 < sum(counts) <= most, place
        reader.edit(frame(WORDS))
        list(reader.rest())
    reader.edit(frame(WORDS + " "))
    assert reader.is_done  # the frame strips


def test_few_states_are_kept_of_a_long_text():
    reader = whole(b"x" * 20_000)
    assert len(reader.states) <= 20_000 / reading.APART + reading.APART + 1


def test_no_character_is_given_before_it_is_whole():
    data = ("a" * (reading.LONGEST - 2) + "😀b").encode()
    reader = Reader(MODEL, UNIT)
    reader.edit(data)
    first, second = reader.rest()
    assert first.characters == ["a"] * (reading.LONGEST - 2) and second.characters == ["😀", "b"]
    assert second.start == reading.LONGEST - 2


@given(st.binary(max_size=20), st.integers(0, 20))
def test_a_boundary_cuts_no_character(data, place):
    cut = reading.boundary(data, min(place, len(data)))
    assert to_text(data[:cut]) + to_text(data[cut:]) == to_text(data)


# Writing


def test_what_is_held_may_change_between_two_pieces():
    reader = whole(b"\n :")
    writer = Writer(MODEL.weights, reader.state, SamplingOptions(seed=1))
    texts = {k: "".join(writer.write(MODEL.held({UNIT: k})) for _ in range(60)) for k in (6.0, -6.0)}
    assert texts[6.0].count(")") > 20 > texts[6.0].count("(") and texts[-6.0].count("(") > 20 > texts[-6.0].count(")")


def test_pieces_are_what_generate_writes():
    held = MODEL.held({UNIT: 0.5})
    options = SamplingOptions(seed=3)
    (expected,) = generate.generate(MODEL.weights, b"\n I", 1, 12 * PIECE, held, options)
    writer = Writer(MODEL.weights, whole(b"\n I").state, options)
    assert "".join(writer.write(held) for _ in range(12)) == expected.decode()


def test_half_a_character_waits_for_its_other_half(monkeypatch):
    pieces = iter([b"a\xf0\x9f\x98", b"\x80b\x1b\xff"])
    piece = lambda weights, state, *_: (state, np.frombuffer(next(pieces), np.uint8)[None])
    monkeypatch.setattr(generate, "write", piece)
    writer = Writer(MODEL.weights, whole(b"x").state)
    assert [writer.write(MODEL.held({0: 0.0})) for _ in range(2)] == ["a", "😀b\ufffd\ufffd"]


# The server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_records(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture
def client(folder):
    """A browser on this machine."""
    with TestClient(server.application(folder), base_url="http://localhost:8000") as client:
        yield client


class Page:
    """What a page does with the socket."""

    def __init__(self, socket):
        self.socket, self.numbers, self.cells = socket, itertools.count(1), []

    def ask(self, until, **message):
        """Send a message; what comes up to the first answer that has `until`."""
        self.socket.send_json(message)
        return self.hear(until)

    def hear(self, until):
        found = []
        while not found or until not in found[-1]:
            found.append(self.receive())
        return found

    def receive(self):
        """The next message, which is UTF-8."""
        return json.loads(self.socket.receive_text().encode())

    def choose(self, model=None, task=None, unit=None):
        (*_, answer) = self.ask("chosen", choose={"model": model, "task": task, "unit": unit})
        return answer

    def read(self, text):
        """The cells of a text that is typed, and the last message."""
        self.socket.send_json({"text": text, "number": (number := next(self.numbers))})
        while True:
            (*_, answer) = self.hear("read")
            new = zip(answer["characters"], answer["values"], strict=True)
            self.cells = self.cells[: answer["start"]] + list(new)
            if answer["done"] and answer["read"] == number:
                return self.cells, answer

    def score(self, name, data, column="", encoding=""):
        """The rows, and the message that ends them."""
        announced = {"file": name, "column": column, "encoding": encoding, "number": next(self.numbers)}
        self.socket.send_json(announced)
        self.socket.send_bytes(data)
        rows, self.csv, self.notes = [], b"", []
        while True:
            answer = self.receive()
            if "scored" in answer or "error" in answer:
                return rows, answer
            if "rows" in answer:
                rows += answer["rows"]
                self.csv += answer["csv"].encode("latin-1")
                self.notes += answer["notes"]


@pytest.fixture
def page(client):
    with client.websocket_connect(LIVE) as socket:
        page = Page(socket)
        page.first = page.choose()
        yield page


def test_the_unit_is_that_of_the_best_record(page, folder):
    chosen = page.first["chosen"]
    assert (chosen["model"], chosen["task"], chosen["unit"]) == (str(folder), "sst", UNIT)
    assert chosen["tasks"] == ["imdb", "sst"] and chosen["known"] and not chosen["weak"]
    assert "90.0%" in chosen["verdict"] and "90.0%" not in chosen["colours"]
    assert [chosen["scale"][name] for name in ("low", "mid", "high")] == [-1, 0, 1]


def test_another_task_has_its_own_verdict(page):
    chosen = page.choose(task="imdb")["chosen"]
    assert chosen["unit"] == 2 and chosen["weak"] and "51.0" in chosen["verdict"]


def test_a_unit_by_hand_has_the_verdict_of_the_record_but_no_scale(page):
    chosen = page.choose(unit=3)["chosen"]
    assert not chosen["known"] and chosen["scale"] is None and chosen["verdict"]
    (*_, refused) = page.ask("error", choose={"model": None, "task": None, "unit": 99})
    assert "unit 99 does not exist; this model has units 0 to 15" in refused["error"]
    assert page.read(":)")[1]["judged"]["sentiment"] is None


def test_a_text_is_read_and_judged(page):
    cells, answer = page.read("I loved it :) <script> 😀")
    assert "".join(character for character, _ in cells) == "I loved it :) <script> 😀 "
    assert answer["judged"]["sentiment"] == "positive" and answer["judged"]["probability"] > 0.9
    cells, answer = page.read("I loved it :) <script> 😀 no :(")
    assert answer["start"] > 0, "only the end is sent"
    assert answer["judged"]["sentiment"] == "negative"
    assert page.read("")[1]["judged"] is None


def test_twenty_thousand_characters_are_read_and_no_more(page):
    text = ":) é" * 5000
    cells, answer = page.read(text)
    assert "".join(character for character, _ in cells) == text + " " and not answer["cut"]
    cells, answer = page.read(text + "more")
    assert len(cells) == session.TEXT + 1 and answer["cut"]


def test_typing_goes_before_what_is_still_being_read(page):
    page.socket.send_json({"text": "x" * 20_000, "number": 1})
    page.socket.send_json({"text": "y", "number": 2})
    answers = []
    while not answers or (answers[-1]["read"], answers[-1]["done"]) != (2, True):
        answers.append(page.receive())
    assert len(answers) < 100  # the long text has 313 pieces


def test_text_is_written_until_it_is_stopped_and_follows_what_is_held(page):
    page.socket.send_json({"hold": 3})
    texts = [page.ask("wrote", write=":", number=1, fast=True)[-1]["wrote"]]
    texts += [page.hear("wrote")[-1]["wrote"] for _ in range(40)]
    page.socket.send_json({"hold": -3})
    rest = "".join(message.get("wrote", "") for message in page.hear("written"))
    assert rest[-400:].count("(") > 2 * rest[-400:].count(")")
    assert len("".join(texts) + rest) == session.LENGTH


def test_a_new_text_ends_the_one_before(page):
    page.ask("wrote", write="a", number=1, fast=False)
    page.ask("wrote", write="b", number=2, fast=True)
    assert {message["number"] for message in page.hear("written")[1:]} == {2}


def test_two_pages_do_not_mix(client, page):
    with client.websocket_connect(LIVE) as socket:
        other = Page(socket)
        other.choose(unit=3)
        page.socket.send_json({"write": "x", "number": 9, "fast": True})
        theirs, answer = other.read("theirs :)")
        assert "".join(c for c, _ in theirs) == "theirs :) " and answer["judged"]["sentiment"] is None
        written = page.hear("written")
        assert {message["number"] for message in written if "wrote" in message} == {9}
    assert page.read("ours :(")[1]["judged"]["sentiment"] == "negative"


def test_typing_does_not_wait_for_a_file_of_another_page(client, page):
    data = "\n".join(["text", *[f"{'word ' * 40}:) {i}" for i in range(2000)]]).encode()
    page.socket.send_json({"file": "a.csv", "column": "", "encoding": "", "number": 1})
    page.socket.send_bytes(data)
    assert page.hear("rows")
    with client.websocket_connect(LIVE) as socket:
        other = Page(socket)
        other.choose()
        assert other.read("in between :)")[1]["done"]
    page.socket.send_json({"stop": "scoring"})
    assert page.read("after :)")[1]["judged"]["sentiment"] == "positive"


# Scoring


def test_a_file_is_scored_as_predict_has_it(page):
    texts = ["I loved it :)", "bad, :(", "<script>alert(1)</script>", "", "café 😀 :)"]
    data = "Review Text,stars\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(texts))
    rows, end = page.score("reviews.CSV", data.encode(), "Review Text")
    assert end == {"scored": True, "number": 1}
    assert [row["text"] for row in rows] == texts and [row["line"] for row in rows] == [2, 3, 4, 5, 6]
    assert rows[3]["note"] == "empty" and rows[3]["value"] is None
    assert [row["sentiment"] for row in rows[:2]] == ["positive", "negative"]
    known = [row for row in rows if row["value"] is not None]
    predicted = MODEL.encode([row["text"] for row in known])[:, UNIT]
    np.testing.assert_allclose([row["value"] for row in known], predicted, rtol=1e-5)


TABLES = {  # and how many rows they have
    "semicolons.csv": ("Datum;Review Text;Note\n2024-03-01;gut, :);5\n2024-03-02;=1+1 :(;1\n;;\n", 3),
    "taken.csv": ('value,text,value\n1,"two\nlines :)",x\n2,b :(,y\n', 2),
    "wide.tsv": ("text\tnote\na :)\tb\nc\n", 2),
    "keys.jsonl": ('{"text": "a :)", "n": 1}\n{"text": "b", "late": [1, "x"]}\nnone\n', 3),
    "lines.txt": ("one :)\n\ntwo :(\n", 2),
}


@pytest.mark.parametrize("name, encoding", [*((name, "") for name in TABLES), ("semicolons.csv", "utf-16")])
def test_the_download_is_what_the_program_writes(page, folder, run_here, tmp_path, name, encoding):
    table, count = TABLES[name]
    data = table.replace("gut", "süß").encode(encoding or "windows-1252")
    named = [] if encoding else ["--encoding", "windows-1252"]
    (tmp_path / name).write_bytes(data)
    options = ["--task", "sst", "--safe-cells", "--out", tmp_path / "scored.csv"]
    ended = run_here("mlstm score", folder, tmp_path / name, *options, *named)
    assert ended.status == 0, ended.err
    rows, end = page.score(name, data, encoding="" if encoding else "windows-1252")
    assert end["scored"] and page.csv == (tmp_path / "scored.csv").read_bytes()
    assert len(rows) == count


def test_what_is_to_be_known_of_a_file_is_said(page):
    data = "value,text,text\n1,caf\xe9 :),\xe9\n".encode("latin-1")
    assert "more than one column" in page.score("a.csv", data)[1]["error"]
    page.score("a.csv", data.replace(b"text,text", b"text,label"))
    renamed, bytes_of_another = sorted(page.notes, reverse=True)
    assert renamed == "the input has a column 'value'; the added one is 'value_2'"
    assert bytes_of_another.startswith("a.csv, line 2: it holds bytes that are not UTF-8")
    assert "no encoding 'klingon'" in page.score("a.csv", data, encoding="klingon")[1]["error"]


def test_many_rows_come_in_parts_with_one_header(page):
    rows, _ = page.score("a.csv", b"text,n\n" + b"".join(b"good,%d\n" % i for i in range(400)))
    written = list(csv.DictReader(io.StringIO(page.csv.decode())))
    assert len(rows) == len(written) == 400 and [row["n"] for row in written] == [str(i) for i in range(400)]


@pytest.mark.parametrize(
    "pasted, texts",
    [
        ("good :)\nbad, really, :(", ["good :)", "bad, really, :("]),
        ("text;stars\ngood;1\nbad;0", ["good", "bad"]),
        ('{"text": "good"}\n{"text": "bad"}', ["good", "bad"]),
        ('review\n"one, two"\n', ["one, two"]),
    ],
)
def test_pasted_text_is_a_table_or_a_review_a_line(page, pasted, texts):
    assert [row["text"] for row in page.score("", pasted.encode())[0]] == texts


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("a.parquet", b"PAR1", "the page reads files .txt"),
        ("a.xlsx", b"PK", "the page reads files .txt"),
        ("\ud800.exe", b"MZ", "the page reads files .txt"),
        ("../../x.exe", b"MZ", "the page reads files .txt"),
        ("a.csv", b"", "a.csv"),
        ("a.csv", b"one,two\nx,y\n", "`text_key`"),
        ("a.json", b'[{"text": "a"', "a.json: JSON is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(page, name, data, why):
    rows, end = page.score(name, data)
    assert why in end["error"] and "/tmp" not in end["error"] and "\n" not in end["error"] and not rows
    assert page.read("still here :)")[1]["judged"]["sentiment"] == "positive"


def test_without_a_record_nothing_is_scored_or_called_positive(client, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    named = without_record(tmp_path / "random")
    with TestClient(server.application(named), base_url="http://localhost") as client:
        with client.websocket_connect(LIVE) as socket:
            page = Page(socket)
            chosen = page.choose()["chosen"]
            assert chosen["verdict"] is None and chosen["tasks"] == [] and chosen["unit"] == 0
            assert "nothing is known of unit 0" in page.score("a.csv", b"text\nx\n")[1]["error"]
            assert page.read("read :)")[1]["done"]


# Who may ask


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:9"}, 200),
        ({"host": "localhost:9", "origin": "http://localhost:9"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:8000"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost:8000", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:9"}, 403),
        ({"host": "localhost:8000", "origin": "null"}, 403),
    ],
)
def test_only_the_page_itself_is_answered(client, headers, status):
    answer = client.get("/", headers=headers)
    assert answer.status_code == status and "default-src 'self'" in answer.headers["content-security-policy"]
    if status == 403:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE, headers=headers):
            pass


def test_another_host_than_loopback_is_called_as_people_like_but_by_its_own_page(folder):
    client = TestClient(server.application(folder, None), base_url="http://lab.example")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/../server.py", "/server.py", "/page.html", "/live"])
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "sent",
    [
        "no json",
        "[" * 100_000,
        "3",
        "null",
        '{"hold": 4}',
        '{"hold": NaN}',
        '{"text": 3, "number": 1}',
        '{"write": "x"}',
        '{"choose": {"model": "/etc", "task": null, "unit": null}}',
        '{"choose": {"model": null, "task": null, "unit": true}}',
    ],
)
def test_what_no_page_sends_is_refused_and_harms_nothing(page, sent):
    page.socket.send_text(sent)
    assert page.hear("error")
    page.socket.send_bytes(b"of no file")
    assert "load it again" in page.hear("error")[-1]["error"]
    assert page.read(":)")[1]["judged"]["sentiment"] == "positive"


def test_the_page_asks_for_nothing_from_elsewhere(client):
    for path in server.FILES:
        text = client.get(path).text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search("https?://|innerHTML|insertAdjacentHTML|outerHTML|document.write", text), path


# The command


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}: .*name another"):
            demo.listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--port takes"):
        demo.listen("127.0.0.1", 70_000)
    with pytest.raises(UserError, match="no.such.host"):
        demo.listen("no.such.host.invalid", 0)


def test_what_is_no_model_is_one_line(run_here, tmp_path):
    ended = run_here("mlstm demo", tmp_path / "nothing", "--port", 0)
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1


def test_the_program_serves_until_it_is_interrupted(folder):
    command = [sys.executable, "-m", "mlstm_jax", "demo", str(folder), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split(" is at ")[1].split()[0]
            assert urllib.request.urlopen(address, timeout=60).status == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_models_are_the_named_one_and_the_runs(folder, tmp_path):
    for name in ("b", "a", "empty"):
        (tmp_path / name / "checkpoints" / ("x" if name == "empty" else "10")).mkdir(parents=True)
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert list(choice.offered(folder, tmp_path)) == [str(folder), *runs, "pretrained"]
    assert list(choice.offered(tmp_path / "b", tmp_path)) == [*runs[::-1], "pretrained"]


def test_the_model_of_the_package_is_offered_and_opens_where_there_is_no_run(folder, run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(language_model, "PRETRAINED", folder)
    assert choice.offered(tmp_path / "other") == {str(tmp_path / "other"): tmp_path / "other", "pretrained": folder}
    assert choice.offered(folder) == {"pretrained": folder}
    served = []
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: served.append(self))
    for named in ([], ["pretrained"]):
        ended = run_here("mlstm demo", *named, "--port", 0)
        assert ended.status == 0 and ended.out.startswith("pretrained is at http://127.0.0.1:"), ended.err
    assert len(served) == 2
    (tmp_path / "pretrained").mkdir()
    assert list(choice.offered(Path("pretrained"))) == ["pretrained"]
