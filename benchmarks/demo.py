"""How soon does the page show what is typed? `python -m benchmarks.demo` from the root; see benchmarks/README.md.

Random weights. Times are taken in the browser: from the key, to the frame after the one in which the whole curve is
drawn.
"""

import os
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import tyro
from playwright.sync_api import Page, sync_playwright

from benchmarks.common import console, machine, tell
from mlstm_jax.cli.demo import listen
from mlstm_jax.config import ModelConfig
from mlstm_jax.demo import choice, server
from mlstm_jax.inference.language_model import LanguageModel
from mlstm_jax.model import parameters

NAMES = ("chromium", "chromium-browser", "google-chrome")
WATCH = """() => {
  const drawn = (node, about, words) => new MutationObserver((_, observer) => {
    if (!node.textContent.includes(words)) return;
    observer.disconnect();
    requestAnimationFrame(() => (window.took = performance.now() - window.asked));
  }).observe(node, about);
  const ask = (event) => {
    window.asked = event.timeStamp;
    window.took = null;
    drawn(document.getElementById("readout"), { childList: true }, "whole text"); // which is there when all is read
  };
  document.getElementById("text").addEventListener("keydown", ask);
  document.getElementById("text").addEventListener("paste", ask);
  document.getElementById("write").addEventListener("click", (event) => {
    window.asked = event.timeStamp;
    window.took = window.ended = null;
    drawn(document.getElementById("written"), { childList: true, subtree: true, characterData: true }, "");
    new MutationObserver((_, observer) => {
      if (event.target.textContent !== "Write") return;
      observer.disconnect();
      window.ended = performance.now() - window.asked;
    }).observe(event.target, { childList: true, characterData: true, subtree: true });
  });
}"""
PASTE = """(text) => {
  const field = document.getElementById("text");
  field.select();
  field.dispatchEvent(new ClipboardEvent("paste"));
  document.execCommand("insertText", false, text);
}"""


def main(hidden: int = 512, length: int = 300, rounds: int = 20, json: Path | None = None) -> None:
    """Time typing and writing in a browser.

    Args:
        hidden: Units of the state.
        length: Characters of the text that is typed in.
        rounds: How often each is timed.
        json: File of JSON lines to which the figures are added.
    """
    console.print(machine())
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise SystemExit("no Chromium is installed")
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", 0) as listening:
        path = Path(folder) / "model"
        LanguageModel(parameters.init(ModelConfig(hidden=hidden), seed=0), path).save(path)
        choice.opened(path)
        serving = server.server(server.application(path))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
                page = browser.new_page(bypass_csp=True)  # to wait for a condition
                page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
                page.wait_for_selector("#coloured span")
                page.evaluate(WATCH)
                times = _times(page, length, rounds)
        finally:
            serving.should_exit = True
            thread.join()
    console.print(f"load of the machine (1, 5, 15 minutes): {' '.join(f'{load:.1f}' for load in os.getloadavg())}")
    written = 2000 / (times.pop("all of it") - times["the first text after Write"]) * 1000
    rows = [{"from the key to the curve, or the text": what, "ms": took} for what, took in times.items()]
    tell(json, "demo", rows, hidden=hidden, length=length, load=os.getloadavg())
    console.print(f"written at full speed: {np.median(written):,.0f} bytes/s")


def _times(page: Page, length: int, rounds: int) -> dict[str, np.ndarray]:
    words = "It was a film that I liked, though not much. " * (length // 40 + 2)
    took = lambda: page.wait_for_function("window.took").json_value()

    def key(place: str) -> float:
        page.locator("#text").press(place)
        page.locator("#text").press("x")
        return took()

    def typed(place: str) -> np.ndarray:
        found = []
        for i in range(rounds + 1):
            page.fill("#text", words[i : i + length])
            page.wait_for_timeout(400)
            found.append(key(place))
        return np.array(found[1:])

    def pasted() -> np.ndarray:
        found = []
        for i in range(rounds + 1):
            page.evaluate(PASTE, f"{i} {words}"[:length])
            found.append(took())
            page.wait_for_timeout(300)
        return np.array(found[1:])

    def wrote() -> tuple[np.ndarray, np.ndarray]:
        first, all_of_it = [], []
        page.check("#fast")
        for _ in range(max(3, rounds // 4)):
            page.click("#write")
            first.append(took())
            all_of_it.append(page.wait_for_function("window.ended", timeout=600_000).json_value())
        return np.array(first), np.array(all_of_it)

    times = {
        f"a key at the end of {length} characters": typed("End"),
        "a key at their beginning: all is read again": typed("Home"),
        f"{length} characters are pasted": pasted(),
    }
    times["the first text after Write"], times["all of it"] = wrote()
    return times


if __name__ == "__main__":
    tyro.cli(main)
