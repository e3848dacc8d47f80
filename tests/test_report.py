"""A report is one page that holds all it shows: text shows as text, nothing is fetched, no script runs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pages import HOSTILE, Page, opened
from mlstm_jax.report import html_page
from mlstm_jax.text import printable, show, to_bytes

TEXTS = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates, too


def shown(text):
    """A text as people see it."""
    return printable(show(to_bytes(text)))


def whole(text, png):
    blocks = [
        html_page.verdict(text, True),
        html_page.contents([(text, "a-b")]),
        html_page.heading(text, "a-b"),
        html_page.paragraph(text),
        html_page.columns([(text, [text, text])]),
        html_page.table([[text, 1]], [text, "n"]),
    ]
    return html_page.page(text, [*blocks, html_page.picture(png, text)])


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    from matplotlib.figure import Figure

    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Figure(figsize=(2, 1)).savefig(path)
    return path


@given(TEXTS)
def test_any_text_shows_as_itself_in_every_block_and_makes_no_element(png, text):
    page, calm = Page(whole(text, png)), Page(whole("calm", png))
    names = lambda page: [(tag, name) for tag, name, _ in page.attributes if name != "class"]  # a number stands right
    assert page.tags == calm.tags and names(page) == names(calm)
    want = shown(text)
    for tag, times in {"title": 1, "h1": 1, "a": 1, "h2": 1, "h3": 1, "p": 4, "figcaption": 1}.items():
        assert page.parts[tag] == [want] * times, tag
    assert page.parts["th"][0] == page.parts["td"][0] == want
    assert ("img", "alt", want) in page.attributes


@given(TEXTS)
def test_nothing_is_fetched_whatever_the_text(png, text):
    page = Page(whole(text, png))
    assert [address[:22] for address in page.addresses] == ["#a-b", "data:image/png;base64,"]
    policy = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"][0]
    assert policy.startswith("default-src 'none'; img-src data:;") and "script" not in page.tags
    assert not re.search("url\\(|@import", html_page.STYLE)


def test_contents_lead_to_headings_and_a_warning_looks_like_one():
    page = Page(
        html_page.contents([("A", "a"), ("B", "b")]) + html_page.heading("A", "a") + html_page.heading("B", "b")
    )
    assert page.addresses == ["#a", "#b"] and [v for _, name, v in page.attributes if name == "id"] == ["a", "b"]
    classes = [re.findall('class="([^"]*)"', html_page.verdict("so", warning)) for warning in (True, False)]
    assert classes == [["verdict warning"], ["verdict"]] and ".warning {" in html_page.STYLE


def test_page_can_always_be_written(png):
    assert b"\xef\xbf\xbd" in whole("a\ud800\udcff\x00\x1b[2J", png).encode()


def test_page_names_its_language_and_fits_a_telephone():
    page = html_page.page("A", [])
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">') and 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page and "max-width: 70ch" in page


def test_columns_of_numbers_and_only_those_stand_right():
    rows = [["a", "61.50%", 7, "0.1 [-0.2, 0.3]"], ["12", "-3.00% ± 0.10%", 1e-9, "–"]]
    classes = re.findall(r"<t[hd]( scope=\"col\")?( class=\"number\")?>", html_page.table(rows, "wxyz"))
    assert [bool(number) for _, number in classes] == [False, True, True, True] * 3


def test_rows_without_a_header_are_headed_by_their_first_cell():
    page = Page(html_page.table([("task", "sst"), ("units", 512)]))
    assert (page.parts["th"], page.parts["td"]) == (["task", "units"], ["sst", "512"])
    assert page.tags.count("thead") == 0
    assert Page(html_page.table([])).parts["tbody"] == ["\n\n"]


def test_browser_shows_a_script_as_text_and_its_console_is_silent(png, tmp_path):
    path = tmp_path / "a.html"
    path.write_text(whole(HOSTILE, png), encoding="utf-8")
    dom, console = opened(path, tmp_path / "profile")
    page = Page(dom)
    assert page.parts["title"] * 4 == page.parts["p"] == [HOSTILE] * 4 and "script" not in page.tags
    assert console == ""


def test_browser_runs_no_script_that_slipped_in(tmp_path):
    path = tmp_path / "a.html"
    path.write_text(html_page.page("A", [HOSTILE]), encoding="utf-8")
    dom, console = opened(path, tmp_path / "profile")
    assert "<title>A</title>" in dom and "Content Security Policy" in console
