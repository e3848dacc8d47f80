"""Progress is a bar on a terminal, lines of words elsewhere, and nothing where it is quiet."""

import io
import logging
import sys
import threading

import pytest

from mlstm_jax import progress


@pytest.fixture
def soon(monkeypatch):
    """Lines come at once; gives an event that is set when one has come, and the lines."""
    came, lines = threading.Event(), []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            came.set()

    handler = Lines()
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    progress.logger.addHandler(handler)
    yield came, lines
    progress.logger.removeHandler(handler)


@pytest.mark.parametrize(
    "counted, said",
    [(True, "fitting: 3 of 12 after 0 s, about 0 s left"), (False, "fitting: 25% after 0 s, about 0 s")],
)
def test_words_say_how_far_it_is_also_in_the_midst_of_a_step(soon, counted, said):
    came, lines = soon
    with progress.progress("fitting", 12, counted=counted) as done:
        done(3)
        came.clear()
        assert came.wait(60)  # nothing more is done
    assert lines[-1].startswith(said)
    said_by_then = len(lines)
    came.clear()
    assert not came.wait(0.1) and len(lines) == said_by_then


@pytest.mark.parametrize("total", [0, 5])
def test_nothing_done_has_no_time_left(soon, total):
    came, lines = soon
    with progress.progress("encoding", total):
        assert came.wait(60)
    assert lines[0] == "encoding: 0% after 0 s"


def test_quiet_and_what_is_not_to_be_shown_is_silent(soon):
    came, lines = soon
    with progress.progress("fitting", 12, show=False) as done:
        done(3)
        assert not came.wait(0.1)
    package = logging.getLogger("mlstm_jax")
    level = package.level
    package.setLevel(logging.WARNING)
    try:
        with progress.progress("fitting", 12):
            assert not came.wait(0.1)
    finally:
        package.setLevel(level)
    assert lines == []


def test_a_terminal_has_a_bar_and_no_words(soon, monkeypatch):
    came, lines = soon
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress("fitting", 12, counted=True) as done:
        done(3)
        assert not came.wait(0.1)
    assert "fitting" in terminal.getvalue() and "3/12" in terminal.getvalue() and lines == []


def test_a_reader_that_has_gone_ends_nothing(soon, monkeypatch):
    came, lines = soon

    def gone(*_):
        came.set()
        raise BrokenPipeError

    monkeypatch.setattr(progress.logger, "info", gone)
    with progress.progress("fitting", 12):
        assert came.wait(60)
        came.clear()
        assert came.wait(60)


def test_a_single_step_says_only_how_long_it_takes(soon):
    came, lines = soon
    with progress.progress("training", 1, counted=True):
        assert came.wait(60)
    assert lines[0] == "training: 0 s so far"


@pytest.mark.parametrize(
    "seconds, said", [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (7200, "2.0 h")]
)
def test_times_are_as_exact_as_they_need_to_be(seconds, said):
    assert progress._time(seconds) == said
