"""What an HTML page holds, as its text says and as a browser shows it."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

HOSTILE = "<script>document.title='x'</script>"
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """What a page holds: the text of every element, its tags and its addresses."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.parts, self.attributes = [], [], [], {}, []
        self.feed(html)
        self.close()
        assert self.open == []  # all is closed, in order

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
            self.parts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open[-1:]:
            self.parts[tag][-1] += data


def browser():
    """Chromium, to be run with a folder of its own; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no chromium here")


def opened(path: Path, folder: Path) -> tuple[str, str]:
    """The page as the browser holds it, and what its console says."""
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={folder}"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, env=os.environ | {"HOME": str(folder)})
    assert done.returncode == 0
    return done.stdout.decode(), "\n".join(line for line in done.stderr.decode().splitlines() if "CONSOLE" in line)
