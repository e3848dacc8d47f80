"""The page as a browser shows it. Whatever it asks of another host than its own server fails its test."""

import csv
import io
import shutil
import threading
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from helpers.demo_models import with_records
from mlstm_jax.cli.demo import listen
from mlstm_jax.demo import choice, server, session

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
expect.set_options(timeout=60_000)  # a machine may be busy
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page of the planted model is served; what it writes comes faster than people read."""
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as listening:
        folder = tmp_path_factory.mktemp("demo")
        patch.chdir(folder)  # there are no runs
        patch.setattr(session, "PACE", 400)
        named = with_records(folder / "planted")
        choice.opened(named)
        serving = server.server(server.application(named))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        serving.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """Opens the page, each time as another person; afterwards nothing has gone wrong in it, or elsewhere."""
    wrong, contexts = [], []

    def visited(**options):
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        own = lambda url: urlsplit(url).netloc == urlsplit(address).netloc or url.startswith("blob:" + address)
        watch = lambda url: None if own(url) else wrong.append(url)
        context.route(lambda url: not own(url), lambda route: route.abort())
        context.on("request", lambda request: watch(request.url))
        page = context.new_page()
        page.on("websocket", lambda socket: watch(socket.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(address)
        expect(page.locator("#readout")).to_contain_text("whole text")
        return page

    yield visited
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(visit):
    return visit()


def curve(page):
    return page.locator(".curve .line").first.get_attribute("d")


def test_the_unit_moves_while_one_types(page):
    page.fill("#text", "")
    before = curve(page)
    page.locator("#text").press_sequentially("good :)")
    expect(page.locator("#readout")).to_contain_text("whole text: positive, value 0.99")
    expect(page.locator("#coloured")).to_have_text("good :) ", use_inner_text=False)
    assert curve(page) != before
    colours = page.locator("#coloured span").evaluate_all("spans => spans.map(span => span.style.backgroundColor)")
    assert colours[0] != colours[-1] and "positive" in colours[-1]
    page.locator("#text").press_sequentially(" no :(")
    expect(page.locator("#readout")).to_contain_text("whole text: negative")
    page.locator("#text").press("Home")
    page.locator("#text").press_sequentially("x")
    expect(page.locator("#coloured")).to_have_text("xgood :) no :( ")


def test_a_place_is_looked_at_with_mouse_and_keyboard(page):
    page.fill("#text", "ab :)")
    expect(page.locator("#coloured")).to_have_text("ab :) ")
    page.locator("#place").focus()
    page.keyboard.press("Home")
    expect(page.locator("#readout")).to_contain_text("up to “a” (1 of 6)")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#coloured .here")).to_have_text("b")
    page.hover("#curve")
    expect(page.locator("#readout")).to_contain_text("up to")


def test_text_streams_while_the_slider_is_dragged(page):
    page.locator("#hold").scroll_into_view_if_needed()
    box = page.locator("#hold").bounding_box()
    at = lambda k: (box["x"] + box["width"] * (k + 3) / 6, box["y"] + box["height"] / 2)
    page.mouse.move(*at(0))
    page.mouse.down()
    page.mouse.move(*at(3.1), steps=3)
    expect(page.locator("#held")).to_have_text("+3 deviations from neutral, positive")
    expect(page.locator("#written span[data-k='3']")).to_contain_text(":) :) ")
    written = page.locator("#written").text_content()
    page.mouse.move(*at(-3.1), steps=3)
    expect(page.locator("#written span[data-k='-3']")).to_contain_text(":( :( ")
    assert page.locator("#written").text_content().startswith(written), "nothing began anew"
    page.mouse.up()
    expect(page.locator("#write")).to_have_text("Stop")
    page.click("#write")
    expect(page.locator("#write")).to_have_text("Write")


def test_a_text_is_written_to_its_end(page):
    page.fill("#prime", "I ")
    page.check("#fast")
    page.click("#write")
    expect(page.locator("#write")).to_have_text("Write")
    text = page.locator("#written").text_content()
    assert text.startswith("I ") and len(text) == session.LENGTH + 2


ROWS = """text,stars
I loved it :),5
"bad, :(",1
=1+1 :),5
"<img src=x onerror=""window.pwned=1""><script>window.pwned=1</script>",3
,4
"""


def test_a_file_is_uploaded_scored_and_downloaded(page):
    page.set_input_files("#file", {"name": "mine.csv", "mimeType": "text/csv", "buffer": ROWS.encode()})
    expect(page.locator("#counts")).to_have_text("4 rows scored, 50.0 % positive, 1 without a value")
    cells = page.locator("#rows tr").nth(1).locator("td").all_text_contents()
    assert cells[:3] == ["3", "bad, :(", "1"] and cells[5] == "negative"
    assert "<script>" in page.locator("#rows").text_content() and page.evaluate("window.pwned") is None
    with page.expect_download() as download:
        page.click("#download")
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert list(rows[0]) == ["text", "stars", "value", "probability", "sentiment", "note"]
    assert [row["text"] for row in rows[:3]] == ["I loved it :)", "bad, :(", "'=1+1 :)"]
    assert [row["sentiment"] for row in rows[:2]] == ["positive", "negative"] and rows[4]["note"] == "empty"
    assert float(rows[0]["value"]) == pytest.approx(1, abs=0.1)


def test_a_file_is_dropped_and_rows_are_pasted(page):
    dropped = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.items.add(new File(['text\\ngood :)'], 'a.csv')); return data; }"
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator("#counts")).to_have_text("1 rows scored, 100.0 % positive")
    page.fill("#pasted", "one :(\ntwo :)")
    page.click("#score")
    expect(page.locator("#counts")).to_have_text("2 rows scored, 50.0 % positive")
    page.set_input_files("#file", {"name": "a.xlsx", "mimeType": "", "buffer": b"PK"})
    expect(page.locator("#trouble")).to_contain_text("a.xlsx: the page reads files .txt")


def test_what_is_to_be_known_of_a_file_is_shown(page):
    latin = "text;value;label\ncaf\xe9 :);1;\xe9\n".encode("latin-1")
    page.set_input_files("#file", {"name": "a.csv", "mimeType": "text/csv", "buffer": latin})
    expect(page.locator("#notes li").first).to_have_text("the input has a column 'value'; the added one is 'value_2'")
    expect(page.locator("#notes")).to_contain_text("name its encoding, as windows-1252")
    page.fill("#encoding", "windows-1252")
    page.set_input_files("#file", {"name": "a.csv", "mimeType": "text/csv", "buffer": latin})
    expect(page.locator("#rows")).to_contain_text("café :)")
    expect(page.locator("#notes li")).to_have_count(1)


def test_markup_is_text_and_a_character_is_one_cell(page):
    text = "<script>window.pwned=1</script> <b>fi</b> e\u0301 👩\u200d👩\u200d👧 🇩🇪 &lt;"
    page.fill("#text", text)
    expect(page.locator("#coloured")).to_contain_text("🇩🇪 <")
    cells = page.locator("#coloured span").all_text_contents()
    assert "".join(cells) == text.replace("&lt;", "<") + " "
    assert {"e\u0301", "👩\u200d👩\u200d👧", "🇩🇪", "f", "i"} <= set(cells)
    assert page.evaluate("window.pwned") is None and page.locator("#coloured :not(span)").count() == 0


def test_twenty_thousand_characters(page):
    text = "word :) é" * 2222
    page.fill("#text", text)
    expect(page.locator("#coloured span")).to_have_count(len(text) + 1)
    page.locator("#text").press("End")
    page.locator("#text").press_sequentially(":(")
    expect(page.locator("#readout")).to_contain_text("whole text: negative")
    assert len(curve(page)) < 50_000
    page.fill("#text", text + "more")
    expect(page.locator("#cut")).to_be_visible()


def test_two_people_at_once(visit):
    one, other = visit(), visit()
    one.click("#write")
    other.select_option("#task", "imdb")
    expect(other.locator("#unit")).to_have_value("2")
    other.fill("#text", "theirs :)")
    one.fill("#text", "ours :(")
    expect(one.locator("#readout")).to_contain_text("whole text: negative, value −0.99")
    expect(other.locator("#coloured")).to_have_text("theirs :) ")
    expect(one.locator("#unit")).to_have_value("7")
    assert other.locator("#written").text_content() == "" and one.locator("#written").text_content()


def test_the_verdict_is_in_sight_and_warns(page):
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("unit 7")
    expect(page.locator("header.weak")).to_have_count(0)
    page.select_option("#task", "imdb")
    expect(verdict).to_contain_text("unit 2")
    expect(page.locator("header.weak")).to_have_count(1)
    page.locator("#scored").evaluate("element => window.scrollTo(0, document.body.scrollHeight)")
    expect(verdict).to_be_in_viewport()
    page.fill("#unit", "3")
    expect(page.locator("#about")).to_contain_text("chosen by hand")
    page.fill("#unit", "99")
    expect(page.locator("#trouble")).to_contain_text("unit 99 does not exist")
    page.click("#own")
    expect(page.locator("#unit")).to_have_value("2")


def test_light_dark_and_narrow(visit):
    papers = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, viewport={"width": 320, "height": 640})
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        unnamed = (
            "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length && !e.ariaLabel)"
        )
        assert page.evaluate(f"{unnamed}.length") == 0
    assert papers[0] != papers[1]
