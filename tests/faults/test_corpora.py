"""Corpora prepared amid accidents: what comes of it is the corpus of a quiet machine, or one line that says why not."""

import os
import random
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from helpers.accidents import (
    Figures,
    can_mount,
    copied,
    cut,
    end,
    few_descriptors,
    files,
    fill,
    flip,
    is_traceback,
    judge,
    run,
    signalled,
    small_disk,
    start,
    tail,
)
from helpers.corpora import alone, dump, killed_at, sums
from mlstm_jax.config import Config
from mlstm_jax.corpus import prepare, readers, runs
from mlstm_jax.corpus.build import build
from mlstm_jax.errors import UserError

pytestmark = pytest.mark.slow

# The program, with chunks of 20 kB: little input is then as many of them as of much input.
SMALL = """
from functools import partial
import tyro
from mlstm_jax.cli.program import script
from mlstm_jax.corpus import prepare, readers, runs
from mlstm_jax.cli.corpus import main
prepare.chunks, runs.BUCKET = partial(readers.chunks, size=20_000), 100_000
script(lambda: tyro.cli(main))
"""


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return dump(tmp_path_factory.mktemp("dump") / "reviews.json", 8000, bad=5)


def arguments(reviews, out, *more):
    return [reviews, "--out", out, "--shards", 20, "--workers", 2, *more]


@pytest.fixture(scope="module")
def whole(reviews, tmp_path_factory):
    """What a quiet machine makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    ended = run(SMALL, *arguments(reviews, out))
    assert ended.status == 0, tail(ended)
    return out


def is_same(out, whole):
    """Whether two folders hold the same corpus, and nothing else."""
    names = [sorted(path.name for path in folder.iterdir() if path.name != ".lock") for folder in (out, whole)]
    manifests = [(folder / "manifest.json").read_bytes() for folder in (out, whole)]
    return names[0] == names[1] and manifests[0] == manifests[1] and sums(out) == sums(whole)


def finished(figures, about, reviews, out, whole, before=(), seen=None):
    """Give the command once more, and count whether it now makes the whole corpus."""
    ended = run(SMALL, *arguments(reviews, out), before=before)
    if ended.status == 0 and not is_traceback(ended) and is_same(seen or out, whole):
        figures.count("end equal")
    else:
        figures.fail("lost", f"{about}: {tail(ended)}")


def test_preparing_killed_at_any_moment_ends_as_if_it_had_not_been(reviews, whole, tmp_path):
    figures, draw = Figures("kills of corpora"), random.Random(0)
    begun = lambda out: (out / ".work" / "plan.json").exists()
    timed = start(SMALL, *arguments(reviews, tmp_path / "timed"))
    while timed.process.poll() is None and not begun(tmp_path / "timed"):
        time.sleep(0.005)
    since = time.monotonic()
    assert end(timed).status == 0
    seconds = time.monotonic() - since
    for number in range(30):
        out, status = tmp_path / f"out{number}", -signal.SIGKILL
        for _ in range(5):
            if (out / "manifest.json").exists() and not (out / ".work").exists():
                break  # killed when all was done
            running = start(SMALL, *arguments(reviews, out))
            ended = signalled(running, signal.SIGKILL, draw.uniform(0, seconds), partial(begun, out))
            status, about = ended.status, f"corpus {number}: {tail(ended)}"
            if is_traceback(ended) or status not in (0, -signal.SIGKILL):
                figures.fail("lost", about)
            if status != -signal.SIGKILL:
                break
            figures.count("killed")
        if (out / "manifest.json").exists() and not (out / ".work").exists():
            figures.count("end equal") if is_same(out, whole) else figures.fail("end differs", about)
        else:
            finished(figures, about, reviews, out, whole)
        if figures.outcomes["killed"] >= 30:
            break
    assert figures.outcomes["killed"] >= 30, "it ends before it is killed: take more reviews"
    figures.report()


def test_a_worker_that_is_killed_costs_a_line(reviews, whole, tmp_path):
    figures, draw = Figures("killed workers"), random.Random(1)
    for number in range(6):
        out = tmp_path / f"out{number}"
        running = start(SMALL, *arguments(reviews, out))
        while running.process.poll() is None and not list(out.glob(".work/*.run")):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        with suppress(IndexError, ProcessLookupError):
            os.kill(workers(running.process.pid)[0], signal.SIGKILL)
            figures.count("killed")
        ended = end(running)
        printed = ended.status == 2 and ended.err.count("\n") == 1 and "a worker was killed" in ended.err
        if printed and not is_traceback(ended):
            figures.count("one line")
            finished(figures, f"worker {number}", reviews, out, whole)
        elif ended.status == 0 and is_same(out, whole):
            figures.count("end equal")
        else:
            figures.fail("no clear line", tail(ended))
    figures.report()


def workers(parent):
    """The processes of a pool."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            its_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if its_parent == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return sorted(found)


INJURIES = [flip, cut, fill]


def test_no_damage_to_an_unfinished_corpus_gives_other_bytes(reviews, whole, tmp_path, monkeypatch):
    """Every file of a call that was killed when only the manifest was missing."""
    figures, draw = Figures("damaged files of unfinished corpora"), random.Random(2)
    monkeypatch.setattr(prepare, "chunks", partial(readers.chunks, size=200_000))
    monkeypatch.setattr(runs, "BUCKET", 100_000)
    options, begun, out = prepare.Options(3), tmp_path / "begun", tmp_path / "out"
    make = lambda folder: prepare.prepare([str(reviews)], folder, options, alone)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="killed"):
        patch.setattr(prepare, "atomic", killed_at("manifest.json"))
        make(begun)
    make(tmp_path / "quiet")
    same = lambda manifest, said: is_same(out, tmp_path / "quiet")
    for path in files(begun):
        for injure in INJURIES:
            copied(begun, out)
            injure(out / path.relative_to(begun), draw)
            judge(figures, f"{injure.__name__} of {path.relative_to(begun)}", lambda: make(out), same)
    assert figures.outcomes.total() > 60
    figures.report()


def test_no_damage_to_a_finished_corpus_goes_unnoticed(whole, tmp_path):
    figures, draw, out = Figures("damaged files of finished corpora"), random.Random(3), tmp_path / "out"
    expected = build(Config(data=str(whole))).digest

    def verified():
        corpus = build(Config(data=str(out), verify=True))
        for shard in range(len(corpus.train)):
            corpus.check(shard)
        return corpus.digest

    for path in files(whole):
        for injure in INJURIES:
            copied(whole, out)
            injure(out / path.relative_to(whole), draw)
            same = lambda digest, said: digest == expected and is_same(out, whole)
            judge(figures, f"{injure.__name__} of {path.relative_to(whole)}", verified, same)
    assert figures.outcomes.total() > 150
    figures.report()


def is_one_line(ended):
    """Whether a program has ended with one line that says how to go on."""
    return ended.status == 2 and ended.err.count("\n") == 1 and not is_traceback(ended)


@pytest.mark.skipif(not can_mount(), reason="this user may not mount")
def test_a_full_disk_costs_a_line(reviews, whole, tmp_path):
    figures = Figures("full disks under corpora")
    for size in ("8k", "100k", "400k", "700k", "1200k", "1500k", "1700k", "2000k"):
        folder = tmp_path / size
        folder.mkdir()
        with small_disk(folder, size) as disk:
            ended = run(SMALL, *arguments(reviews, folder / "out"), before=disk.before)
            if ended.status == 0 and is_same(disk.seen / "out", whole):
                figures.count("large enough")
                continue
            printed = is_one_line(ended) and "No space left on device" in ended.err and str(folder) in ended.err
            if printed and "the same command goes on" in ended.err:
                figures.count("one line")
            else:
                figures.fail("no clear line", f"{size}: {tail(ended)}")
            disk.resize("50m")
            finished(figures, size, reviews, folder / "out", whole, disk.before, disk.seen / "out")
    assert figures.outcomes["one line"] >= 5
    figures.report()


def test_few_descriptors_cost_a_line(reviews, whole, tmp_path):
    figures = Figures("few descriptors for corpora")
    for count in (10, 14, 18, 20, 22, 24, 26, 32, 64):
        out = tmp_path / str(count)
        ended = run(SMALL, *arguments(reviews, out), before=few_descriptors(count))
        if ended.status == 0 and is_same(out, whole):
            figures.count("enough")
        elif is_one_line(ended) and "Too many open files" in ended.err:
            figures.count("one line")
            finished(figures, f"{count} descriptors", reviews, out, whole)
        else:
            figures.fail("no clear line", f"{count}: {tail(ended)}")
    assert figures.outcomes["enough"] and figures.outcomes["one line"]
    figures.report()
