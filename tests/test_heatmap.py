"""The heat map shows every character of a text once, coloured by the unit's value, and nothing else."""

import dataclasses
import io
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pages import HOSTILE, Page, opened
from helpers.unit_records import RECORD
from mlstm_jax import unit_record
from mlstm_jax.cli import heatmap as heatmap_cli
from mlstm_jax.cli.program import explain
from mlstm_jax.config import ModelConfig
from mlstm_jax.errors import UserError
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model.parameters import init
from mlstm_jax.report import heatmap, html_page
from mlstm_jax.report.heatmap import Scale, Span
from mlstm_jax.text import frame

UP, DOWN = Scale(-1.0, 0.5, 2.0), Scale(2.0, 0.5, -1.0)
TEXTS = st.text(max_size=60)
ESCAPES = re.compile("\x1b\\[[0-9;]*m")


def of_text(text, seed=0):
    """Spans of a text, with values all over the scale."""
    data = text.encode()
    return heatmap.spans(data, np.random.default_rng(seed).normal(0.5, 1, len(data)))


def characters(spans):
    return "".join(span.character for span in spans)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    model = LanguageModel(init(ModelConfig(hidden=8, embed=4), 0), folder, is_run=True)
    coefficients = (0.0,) * 8
    unit_record.save(dataclasses.replace(RECORD, digest=model.digest, coefficients=coefficients), folder / "units")
    return model


@given(st.binary(max_size=60) | TEXTS.map(str.encode))
def test_every_byte_belongs_to_one_character_which_has_the_value_after_its_last(data):
    found = heatmap.spans(data, np.arange(len(data)) / 2)
    assert b"".join(span.data for span in found) == data
    assert [span.byte + 1 for span in found] == np.cumsum([len(span.data) for span in found]).tolist()
    assert all(span.value == span.byte / 2 for span in found)
    for span in found:
        try:
            assert span.character in (span.data.decode(), "\ufffd")
        except UnicodeDecodeError:
            assert span.character == "\ufffd" and len(span.data) == 1


def test_what_would_reorder_or_break_lines_or_steer_a_terminal_does_not_show_as_itself():
    hidden = "\x1b\x00\x7f\x85\u2028\u2029\u202a\u202b\u202d\u202e\u202c\u2066\u2067\u2068\u2069"
    assert characters(of_text(hidden)) == "\ufffd" * len(hidden)
    assert characters(of_text("a\n\té עברית 日本 🎬")) == "a\n\té עברית 日本 🎬"


def test_values_of_other_bytes_are_refused():
    with pytest.raises(UserError, match="2 bytes have 3 values"):
        heatmap.spans(b"ab", np.zeros(3))


@given(st.floats(allow_nan=True), st.sampled_from([UP, DOWN]))
def test_strength_is_bounded_zero_in_the_middle_and_odd_around_it(value, scale):
    strength = heatmap.strength(value, scale)
    assert -1 <= strength <= 1
    assert strength == -heatmap.strength(value, Scale(scale.high, scale.mid, scale.low))
    assert all(0 <= part <= 255 for part in heatmap.colour(value, scale))


@pytest.mark.parametrize("scale", [UP, DOWN])
def test_full_colours_stand_at_the_ends_whichever_way_the_unit_points(scale):
    assert [heatmap.strength(value, scale) for value in scale[:3]] == [-1, 0, 1]
    low, mid, high = (heatmap.colour(value, scale) for value in scale[:3])
    assert low[0] > low[2] and high[2] > high[0] and mid == heatmap.PAPER


def test_scale_without_an_extent_has_no_colour():
    assert heatmap.strength(3.0, Scale(1.0, 1.0, 1.0)) == heatmap.strength(3.0, Scale(0.0, 1.0, 1.0)) == 0


def test_each_side_has_an_extent_of_its_own():
    assert [heatmap.strength(value, Scale(-1.0, 0.0, 4.0)) for value in (-2, -0.5, 0, 1, 4)] == [-1, -0.5, 0, 0.25, 1]
    assert [heatmap.strength(value, Scale(4.0, 0.0, -1.0)) for value in (-2, -0.5, 0, 1, 4)] == [1, 0.5, 0, -0.25, -1]


@pytest.mark.parametrize("scale", [UP, DOWN])
def test_black_text_can_be_read_on_every_colour(scale):
    linear = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4  # WCAG 2's relative luminance
    for value in np.linspace(-2, 3, 20).tolist():
        red, green, blue = (linear(part / 255) for part in heatmap.colour(value, scale))
        assert (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) / 0.05 > 7


@given(TEXTS, st.integers(2, 30))
def test_rows_hold_all_characters_in_order_and_none_is_too_wide(text, columns):
    found = of_text(text)
    rows = heatmap.rows(found, columns)
    assert "\n".join(map(characters, rows)).replace("\n", "") == characters(found).replace("\n", "")
    assert all(sum(heatmap.width(span.character) for span in row) <= columns for row in rows)


def test_rows_break_after_spaces_and_cut_only_words_longer_than_a_row():
    rows = lambda text: [characters(row) for row in heatmap.rows(of_text(text), 6)]
    assert rows("ab cd efghijklm n") == ["ab cd ", "efghij", "klm n"]
    assert rows("ab\ncd") == ["ab", "cd"]
    assert rows("") == [""]


@given(TEXTS)
def test_html_shows_any_text_as_itself_and_fetches_nothing(text):
    found = of_text(text)
    page = Page(html_page.page("A", [heatmap.html([found], UP, text)]))
    legend, coloured = page.parts["span"][:3], page.parts["span"][3:]
    assert legend == ["negative -1", "neutral 0.5", "positive 2"] and "".join(coloured) == characters(found)
    assert page.addresses == [] and not {"script", "img", "link", "style"} & set(page.tags[page.tags.index("body") :])
    titles = [value for tag, name, value in page.attributes if name == "title"]
    hover = "{} = {}: {:.3g} after byte {}".format
    assert titles == [hover(s.character, s.data.hex(" "), s.value, s.byte) for s in found]
    assert all("url" not in value for _, name, value in page.attributes if name == "style")


@given(TEXTS)
def test_terminal_shows_any_text_and_no_control_but_its_colours(text):
    shown = heatmap.terminal([of_text(text)], UP, "about")
    bare = ESCAPES.sub("", shown)
    assert {c for c in bare if unicodedata.category(c) == "Cc"} <= {"\n"}
    assert all(line == "" or "\x1b" not in line or line.endswith("\x1b[0m") for line in shown.split("\n"))
    squeezed = lambda text: re.sub("[\n\t ]", "", text)
    assert squeezed(bare).startswith(squeezed(characters(of_text(text))))


def test_plain_marks_stand_under_their_characters():
    spans = [
        Span(c, c.encode(), i, value) for i, (c, value) in enumerate(zip("ab日c", [-1.0, 0.5, 2.0, 1.2], strict=True))
    ]
    lines = heatmap.plain([spans], UP, "about").split("\n")
    assert lines[:3] == ["ab日c", "N.PPp", ""] and "N negative -1" in lines[3] and lines[-1] == "about"
    assert "\x1b" not in "".join(lines)


def test_png_draws_any_character_without_a_warning(tmp_path):
    from matplotlib.image import imread

    texts = [of_text("naïve $5 and $6 日本 🎬 e\u0301 \ufffd\t| " + "word " * 40), of_text("short")]
    first = heatmap.png(texts, UP, "about", tmp_path / "new" / "a.png")
    other = heatmap.png(texts, DOWN, "about", tmp_path / "b.png")
    assert imread(first).shape == imread(other).shape and (imread(first) != imread(other)).any()
    assert imread(first).min() < 0.2 and imread(first)[0, 0, :3].min() == 1
    with pytest.raises(UserError, match="600 lines are too many .* \\.html"):
        heatmap.png([of_text("a")] * 300, UP, "about", tmp_path / "c.png")


def test_record_sets_unit_and_scale(model):
    (loved,), scale, about = model.heatmap(["I loved é"])
    mid = (RECORD.mean_negative + RECORD.mean_positive) / 2
    assert scale[:3] == pytest.approx((mid + 2 * RECORD.deviation, mid, mid - 2 * RECORD.deviation))  # its sign is -1
    assert characters(loved) == "I loved é " and "Unit 2, cell state" in about and "sst" in about
    trace = model.trace("I loved é")
    assert [span.value for span in loved] == pytest.approx(trace[[2, 3, 4, 5, 6, 7, 8, 9, 11, 12], 2])
    assert loved[-1].byte == len(frame("I loved é")) - 1


def test_full_colour_is_what_few_bytes_go_beyond_and_at_least_a_deviation_away():
    mid = (RECORD.mean_negative + RECORD.mean_positive) / 2
    for sign in (1, -1):
        record = dataclasses.replace(RECORD, sign=sign, scale=(-3.0, 9.0))
        assert heatmap.of_record(record)[:3] == ((-3.0, mid, 9.0) if sign > 0 else (9.0, mid, -3.0))
    narrow = heatmap.of_record(dataclasses.replace(RECORD, scale=(mid + 0.1, mid + 0.2)))
    assert narrow[:3] == (mid + RECORD.deviation, mid, mid - RECORD.deviation)
    about = heatmap.draw(["a"], [np.zeros(4)], 2, dataclasses.replace(RECORD, scale=(-3.0, 9.0))).about
    assert "most extreme hundredth of bytes" in about


def test_no_two_letters_are_drawn_as_one():
    page = heatmap.html([of_text("fi and fl")], UP, "about")
    assert "font-variant-ligatures:none" in page and page.count("<span") == 3 + 9


def test_words_stand_beside_their_texts():
    page = Page(heatmap.html([of_text("one"), of_text("two")], UP, "about", [f"first {HOSTILE}", "second"]))
    assert [part for part in page.parts["div"] if part.strip()] == [f"first {HOSTILE}", "second"]
    assert "script" not in page.tags and page.tags.count("p") == 2


def test_another_unit_is_shown_on_the_scale_of_the_texts(model):
    texts, scale, about = model.heatmap(["I loved it", "no"], unit=5)
    every = np.concatenate([model.trace("I loved it")[:, 5], model.trace("no")[:, 5]]).astype(np.float64)
    assert scale.mid == pytest.approx(every.mean()) and scale.high - scale.mid == pytest.approx(2 * every.std())
    assert scale.names == ("low", "mean", "high") and "which sign is positive is not known" in about
    assert len(texts) == 2


def test_missing_records_units_and_tasks_are_refused_in_words(model):
    with pytest.raises(UserError, match="find the unit of these weights") as error:
        model.heatmap(["a"], task="imdb")
    assert explain(error.value).endswith("python eval_sst.py RUN --task imdb")
    with pytest.raises(UserError, match="unit 8 does not exist; this model has units 0 to 7"):
        model.heatmap(["a"], unit=8)
    with pytest.raises(UserError, match="names no unit record"):
        model.heatmap(["a"], task="/etc/x")


def test_files_are_written_once_and_stdin_is_a_text(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlstm_jax.inference.language_model.load", lambda run: model)
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO("from stdin \udcff".encode("utf-8", "surrogateescape")))
    )
    path = tmp_path / "a.html"
    heatmap_cli.main(tmp_path, ("-", HOSTILE), out=path)
    spans = "".join(Page(path.read_text(encoding="utf-8")).parts["span"])
    assert "from stdin \ufffd" in spans and HOSTILE in spans
    with pytest.raises(UserError, match="there already"):
        heatmap_cli.main(tmp_path, ("new",), out=path)
    heatmap_cli.main(tmp_path, ("a",), out=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with monkeypatch.context() as patched, pytest.raises(UserError, match="cannot be drawn.*; name a file .html"):
        patched.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
        heatmap_cli.main(tmp_path, ("a",), out=tmp_path / "b.png")
    for texts, out, problem in (
        ((), tmp_path / "b.html", "name texts"),
        (("-", "-"), tmp_path / "b.html", "once -"),
        (("a",), tmp_path / "a.jpg", ".html or .png"),
    ):
        with pytest.raises(UserError, match=problem):
            heatmap_cli.main(tmp_path, texts, out=out)
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("tty, no_color, coloured", [(True, "", True), (True, "1", False), (False, "", False)])
def test_colour_is_for_terminals_that_want_it(model, tmp_path, monkeypatch, capsys, tty, no_color, coloured):
    monkeypatch.setattr("mlstm_jax.inference.language_model.load", lambda run: model)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    monkeypatch.setenv("NO_COLOR", no_color)
    heatmap_cli.main(tmp_path, ("I loved it",))
    out = capsys.readouterr().out
    assert ("\x1b[" in out) == coloured and "I loved it" in ESCAPES.sub("", out)


def test_help_is_quick_and_imports_no_jax():
    code = "import sys; from mlstm_jax.cli import heatmap; print('jax' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_browser_shows_a_hostile_review_as_text(tmp_path):
    path = tmp_path / "a.html"
    text = f"{HOSTILE} <img src=x onerror=\"document.title='y'\"> &amp; é 日本"
    path.write_text(html_page.page("Byte by byte", [heatmap.html([of_text(text)], UP, "about")]), encoding="utf-8")
    dom, console = opened(path, tmp_path / "profile")
    page = Page(dom)
    assert page.parts["title"] == ["Byte by byte"] and console == ""
    assert "".join(page.parts["span"][3:]) == text and not {"script", "img"} & set(page.tags)
