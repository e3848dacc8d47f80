"""Object storage: gs://BUCKET/... and s3://BUCKET/..., by way of a mirror on this machine.

`local` makes a path in a bucket a path under the cache folder, its *mirror*, from which its name can be told again. So
all other code works on files: they are fetched before they are read, and sent when they are written. A run that is
trained grows in its mirror and is sent in the background (`keeping`), so that no update waits for the bucket.
"""

import contextlib
import errno
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlstm_jax.disk import cache_dir, locked
from mlstm_jax.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme: its package, and the extra that installs it
_USE = "/([\\w-]+)/(gs|s3)/"
_MIRROR = re.compile("(.*)/mlstm_jax/buckets" + _USE)
# What a path of object storage begins with; pathlib makes one slash of two. One letter is none: a file may be "a:/b".
_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/+")

UNSENT = ("checkpoints", "features")  # folders of a run: sent in their own way, or made again
PATIENCE = 300.0  # seconds for which an error that may pass is waited out
PAUSE = 1.0  # seconds before the second try; twice as long before each further one
BEAT = 15.0  # seconds between two signs of life of a process that trains, and between two looks for what is to be sent
DEAD = 120.0  # seconds without a sign of life after which a run may be taken over


# Names


def local(path: str | Path, use: str = "read") -> Path:
    """The path on this machine: itself, or of a path in a bucket its mirror for this use ("read", "train" ...).

    Raises UserError for a scheme that is not known, or whose package is not installed.
    """
    found = _SCHEME.match(str(path))
    if not found:
        return Path(path)
    scheme, key = found[1], str(path)[found.end() :].strip("/")
    url = f"{scheme}://{key}"
    if scheme not in EXTRAS:
        raise UserError(f"{url}: no such storage is known here; there are {' and '.join(f'{s}://' for s in EXTRAS)}")
    if not key or ".." in key.split("/"):
        raise UserError(f"{url} names no place in a bucket; name one as {scheme}://BUCKET/PATH")
    package, extra = EXTRAS[scheme]
    if not importlib.util.find_spec(package):
        raise UserError(f"{url}: {package} is not installed; pip install 'mlstm-jax[{extra}]'")
    return _mirrors() / use / scheme / key


def _mirrors() -> Path:
    return (cache_dir() / "buckets").absolute()


def is_remote(path: Path) -> bool:
    """Whether a path is the mirror of one in a bucket."""
    return _MIRROR.match(str(path)) is not None


def name(path: str | Path) -> str:
    """What a path is called: gs://... of a mirror, any other as it is."""
    return _MIRROR.sub(r"\3://", str(path))


def shown(text: str) -> str:
    """A text with the names of mirrors as they are in their buckets."""
    return re.sub(re.escape(str(_mirrors())) + _USE, r"\2://", text) if "/mlstm_jax/buckets/" in text else text


def _where(path: Path) -> str:
    """Where a mirror lies on this machine, as `shown` leaves it."""
    return str(path).replace("/mlstm_jax/buckets/", "/mlstm_jax/./buckets/")


# What a bucket is asked


class Entry(NamedTuple):
    """An object: its bytes, and when it was written, in seconds since 1970."""

    size: int
    time: float


@cache
def _system(scheme: str) -> Any:
    """The file system of a scheme, made when it is first needed."""
    logging.getLogger(EXTRAS[scheme][0]).setLevel(logging.CRITICAL)  # it logs what it raises
    if scheme == "gs":
        # gcsfs's default one asks by gRPC, which not every network lets through.
        from gcsfs.core import GCSFileSystem  # pyright: ignore[reportMissingImports] (an extra)

        return GCSFileSystem(use_listings_cache=False)
    from s3fs import S3FileSystem  # pyright: ignore[reportMissingImports] (an extra)

    return S3FileSystem(use_listings_cache=False)


def _at(path: Path) -> tuple[Any, str]:
    """The file system of a mirror, and the key that it stands for."""
    scheme, key = name(path).split("://")
    return _system(scheme), key


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)  # of this machine
_DENIED = "Credentials|RefreshError|ProfileNotFound|Unauthorized|PermissionError|TokenRetrieval|NonRetryable"
_PASSING = "Connection|Timeout|ClientError|HTTPClientError|TransportError|OSError|ChecksumError|RequestException"


def _denied(error: BaseException) -> bool:
    if getattr(error, "filename", None):  # a file of this machine
        return False
    code = str(getattr(error, "code", ""))
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    return code in ("400", "401", "403") or bool(re.search(_DENIED, kinds)) or str(error).startswith("Forbidden")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, UserError | FileNotFoundError | FileExistsError) or _denied(error):
        return False
    if getattr(error, "filename", None) or getattr(error, "errno", None) in (*_UNWRITABLE, errno.EINVAL):
        return False
    code = getattr(error, "code", None)
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    return str(code) in ("408", "429") or str(code).startswith("5") or bool(re.search(_PASSING, kinds))


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _ask(path: Path, do: Callable[[], T]) -> T:
    """What `do()` returns, tried again for a while where an error may pass; FileNotFoundError is raised as it is.

    Raises UserError where the bucket does not answer, or lets nobody in.
    """
    deadline, pause = None, PAUSE
    while True:
        try:
            answer = do()
            if deadline:
                logger.warning(f"{name(path)} answers again")
            return answer
        except Exception as error:
            if isinstance(error, FileNotFoundError | UserError):
                raise
            if _denied(error):
                raise _no_access(path, error) from None
            if not _may_pass(error):
                raise UserError(f"{name(path)}: {_cause(error)}") from None
            if deadline is None:  # a transfer may have taken long until it failed
                logger.warning(f"{name(path)} does not answer ({_cause(error)}); trying again")
                deadline = time.monotonic() + PATIENCE
            if time.monotonic() + pause > deadline:
                raise UserError(f"{name(path)} does not answer ({_cause(error)}); try again later") from None
        time.sleep(pause)
        pause = min(2 * pause, 30)


def _no_access(path: Path, error: BaseException) -> UserError:
    hint = {
        "gs": "log in with: gcloud auth application-default login",
        "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    }[name(path).partition(":")[0]]
    return UserError(f"{name(path)}: no access ({_cause(error)}); {hint}")


def _files(path: Path) -> dict[str, Entry]:
    system, key = _at(path)
    try:
        found = system.find(key, detail=True)
        missing = not found and "s3" in system.protocol and not system.exists(key.split("/")[0])
    except FileNotFoundError:  # of gs a bucket that is missing, while an empty folder has no files; who may read
        found, missing = None, True  # objects need not be allowed to ask whether there is a bucket
    if missing:
        raise UserError(f"{name(path)}: there is no such bucket") from None
    # Empty, . and .. parts are in the marks of folders, and would lead out of the mirror.
    inside = lambda each: each.startswith(f"{key}/") and not {"", ".", ".."} & set(each[len(key) + 1 :].split("/"))
    return {each[len(key) + 1 :]: _entry(info) for each, info in (found or {}).items() if each == key or inside(each)}


def _entry(info: dict[str, Any]) -> Entry:
    when = info.get("LastModified") or info.get("mtime") or info.get("updated") or 0
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    return Entry(info["size"], when.timestamp() if isinstance(when, datetime) else float(when))


def files(path: Path) -> dict[str, Entry]:
    """All objects below a mirror by their names in it; "" is the path itself where it is one.

    Raises UserError where there is no such bucket.
    """
    return _ask(path, lambda: _files(path))


def files_here(path: Path) -> dict[str, os.stat_result]:
    """All files below a path of this machine by their names in it; "" is the path itself where it is one."""
    found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    stats = {}
    for each in found:
        with contextlib.suppress(FileNotFoundError):  # taken away just now
            stats["" if each == path else str(each.relative_to(path))] = each.stat()
    return stats


def _names(folder: Path) -> list[str]:
    system, key = _at(folder)
    found = system.ls(key, detail=False)
    return [each[len(key) + 1 :].rstrip("/") for each in found if len(each) > len(key) + 1]


def names(folder: Path) -> list[str]:
    """The names of what lies in a folder, in a bucket or not; none where there is no such folder."""
    try:
        return _ask(folder, lambda: _names(folder)) if is_remote(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read(path: Path) -> bytes:
    """The bytes of an object. Raises FileNotFoundError."""
    system, key = _at(path)
    return _ask(path, lambda: system.cat_file(key))


def remove(paths: Iterable[Path]) -> None:
    """Remove objects; that one is gone is no error."""
    for path in paths:
        _ask(path, lambda path=path: _remove(path))


def _remove(path: Path) -> None:
    system, key = _at(path)
    with contextlib.suppress(FileNotFoundError):
        system.rm_file(key)


# From and to a bucket


def fetch(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Make a mirror what its bucket holds, as far as `wanted(name)` of names below it; the names of all that is there.

    What is here already, of the same size and time, is not fetched again. Of a path of this machine nothing is done.
    """
    if not is_remote(path):
        return []
    found = files(path)
    chosen = {each: entry for each, entry in found.items() if wanted(each)}
    for each in (each for each in files_here(path) if wanted(each) and each not in chosen):
        if not (file := path / each).name.startswith("."):  # what another process is fetching
            file.unlink(missing_ok=True)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda item: _refresh(path / item[0], item[1]), chosen.items()):
            pass
    return list(found)


def _refresh(path: Path, entry: Entry) -> None:
    """Fetch an object into its mirror unless it is there; one that has been removed since it was listed is left out."""
    with contextlib.suppress(FileNotFoundError):
        here = path.stat()
        if here.st_size == entry.size and abs(here.st_mtime - entry.time) < 0.001:
            return
    with contextlib.suppress(FileNotFoundError):
        get(path, path)
        if path.stat().st_size == entry.size:  # else it is a newer one, to be fetched again next time
            os.utime(path, (entry.time, entry.time))


def get(path: Path, into: Path) -> None:
    """Fetch one object into a file of this machine, whole or not at all. Raises FileNotFoundError."""
    system, key = _at(path)
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = into.with_name(f".{into.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _ask(path, lambda: system.get_file(key, str(temporary)))
        os.replace(temporary, into)
    finally:
        temporary.unlink(missing_ok=True)


def fetched(item: str) -> str:
    """What is named, on this machine: a file or folder of a bucket, or all files there that fit a pattern.

    Any other name is returned as it is. Raises UserError where there is nothing.
    """
    path = local(item)
    if not is_remote(path):
        return item
    begin = re.split(r"[*?\[]", str(path))[0]
    folder = path if begin == str(path) else Path(begin.rpartition("/")[0])
    everything = folder == path or "**" in path.parts
    fits = lambda each: everything or (folder / each).match(str(path))
    if not any(map(fits, fetch(folder, fits))):
        raise UserError(f"{name(path)}: there is nothing of that name")
    return str(path)


def new(path: str | Path) -> Path:
    """`local` of what is to be written and must not be there yet; what an earlier call could not send makes way.

    Raises UserError where it is in the bucket. A path of this machine is not looked at.
    """
    mirror = local(path, "write")
    if is_remote(mirror):
        if files(mirror):
            raise UserError(f"{name(mirror)} is there already; name another one")
        _clear(mirror)
        mirror.parent.mkdir(parents=True, exist_ok=True)
    return mirror


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(path: Path, source: Path | None = None) -> None:
    """Send a file of this machine, by default a mirror, to where its name says. It appears whole or not at all."""
    try:
        _ask(path, lambda: _put(path, source))
    except FileNotFoundError:
        if (source or path).exists():
            raise UserError(f"{name(path)}: there is no such bucket") from None
        raise


def _put(path: Path, source: Path | None = None) -> None:
    system, key = _at(path)
    system.put_file(str(source or path), key)


@contextlib.contextmanager
def sent(path: Path | None, is_new: bool = False) -> Iterator[None]:
    """What changes below a mirror meanwhile is sent at the end; of a path of this machine nothing is done.

    Where it `is_new`, all is sent, and nothing stays on this machine; a UserError where it is in the bucket already.
    """
    if path is None or not is_remote(path):
        yield
        return
    if is_new and files(path):
        raise UserError(f"{name(path)} is there already; name another one")
    stamp = lambda stat: (stat.st_size, stat.st_mtime_ns)
    before = {each: stamp(stat) for each, stat in files_here(path).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    yield
    changed = [each for each, stat in files_here(path).items() if is_new or stamp(stat) != before.get(each)]
    try:
        for each in changed:
            put(path / each)
    except UserError as error:
        raise UserError(f"{error}; what was to be written is kept in {_where(path)}") from None
    if is_new:
        _clear(path)


@contextlib.contextmanager
def passing(path: Path) -> Iterator[None]:
    """Remove a mirror at the end; of a path of this machine nothing is done."""
    try:
        yield
    finally:
        if is_remote(path):
            shutil.rmtree(path, ignore_errors=True)


# Checkpoints: many objects, and a last one, STEP.json, which lists them; without it there is no such checkpoint


def steps(folder: Path) -> list[int]:
    """The checkpoints that are whole in a bucket, in order."""
    return _steps(names(folder))


def _steps(names: Iterable[str]) -> list[int]:
    return sorted(int(each[:-5]) for each in names if re.fullmatch(r"(0|[1-9][0-9]*)\.json", each))


def _steps_here(folder: Path) -> list[int]:
    """The checkpoints that are whole on this machine: Orbax gives one its name when it is."""
    try:
        return sorted(int(each) for each in os.listdir(folder) if re.fullmatch("0|[1-9][0-9]*", each))
    except FileNotFoundError:
        return []


def fetch_step(folder: Path, step: int, parts: Iterable[str]) -> None:
    """Fetch the named parts of a checkpoint.

    Raises FileNotFoundError where it has made way for a newer one, or is not whole in the bucket.
    """
    listed, known = json.loads(read(folder / f"{step}.json"))["files"], steps(folder)
    for gone in (each for each in _steps_here(folder) if each not in known):
        shutil.rmtree(folder / str(gone), ignore_errors=True)
    other = [part for part in ("params", "train", "meta") if part not in parts]
    sizes = {each: size for each, size in listed.items() if each.split("/")[0] not in other}
    there = fetch(folder / str(step), lambda each: each in sizes)
    for each, size in sizes.items():
        if each not in there:
            raise FileNotFoundError(errno.ENOENT, "is missing", name(folder / str(step)))
        file = folder / str(step) / each
        is_whole = lambda file=file, size=size: file.is_file() and file.stat().st_size == size
        if not is_whole():
            get(file, file)  # once more, since what was only not fetched is no damage
        if not is_whole():
            raise FileNotFoundError(errno.ENOENT, "is not as it was sent", name(file))


def drop_step(folder: Path, step: int) -> None:
    """Remove a checkpoint: first the list that makes it one."""
    _ask(folder, lambda: _drop(folder, step))


def _drop(folder: Path, step: int) -> None:
    _remove(folder / f"{step}.json")
    for each in _files(folder / str(step)):
        _remove(folder / str(step) / each)


# A run while it is trained


class Holder(NamedTuple):
    """Who holds a run: a name of the mirror it is trained in, the machine's, and how often it has shown itself."""

    owner: str
    host: str
    beat: int


class TakenOver(UserError):
    """Another process trains the run now."""


class Keeper:
    """Sends what a run that is trained in its mirror has new, and shows that this process is alive; see `keeping`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep, self.lock = folder, keep, folder / ".lock"
        self.owner, self.beat, self.silent = _owner(folder), 0, False
        self.sent: dict[str, tuple[int, int]] = {}  # size and time of files, when they were sent
        self.stop, self.over = threading.Event(), threading.Event()
        # Two of them: a large file takes longer to send than a sign of life may be late.
        self.sender = threading.Thread(target=self._repeat, args=(self.send, self.stop), daemon=True)
        self.heart = threading.Thread(target=self._repeat, args=(self._live, self.over), daemon=True)

    def take(self) -> bool:
        """Take the run; whether this mirror held it already. Raises UserError where another process trains in it."""
        holder = self._holder()
        ours = holder is not None and holder.owner == self.owner
        if holder is not None and not ours:
            holder = self._wait_for(holder)
        system, key = _at(self.lock)
        mode = "create" if holder is None else "overwrite"
        try:
            _ask(self.folder, lambda: system.pipe_file(key, self._mark(), mode=mode))
        except FileNotFoundError:
            raise UserError(f"{name(self.folder)}: there is no such bucket") from None
        except UserError as error:
            if self._holder() is None:
                raise
            logger.debug(str(error))  # somebody was faster, or it was written although there was no answer
        if (now := self._holder()) is None or now.owner != self.owner:
            raise self._refused(now)
        return ours

    def _wait_for(self, holder: Holder) -> Holder | None:
        """A holder of whom nothing is heard for long enough; None who lets go. Raises UserError for one who lives."""
        logger.warning(
            f"{name(self.folder)} is held by {holder.host}; it is taken over if nothing is heard from there for "
            f"{DEAD:.0f} seconds"
        )
        deadline = time.monotonic() + DEAD
        while time.monotonic() < deadline:
            time.sleep(min(BEAT / 3, DEAD))
            asked, now = time.monotonic(), self._holder()
            if now is None:
                return None
            if now != holder:
                raise self._refused(now)
            if time.monotonic() - asked > BEAT:  # the bucket did not answer, nor did it answer the holder
                deadline = time.monotonic() + DEAD
        return holder

    def _refused(self, holder: Holder | None) -> UserError:
        where = f" on {holder.host}" if holder else ""
        return UserError(f"{name(self.folder)} is being trained by another process{where}")

    def _mark(self) -> bytes:
        self.beat += 1
        return json.dumps(Holder(self.owner, os.uname().nodename, self.beat)._asdict()).encode()

    def _holder(self) -> Holder | None:
        try:
            return _holder_of(read(self.lock))
        except FileNotFoundError:
            return None

    def _repeat(self, do: Callable[[], None], stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            try:
                do()
                if self.silent:
                    self.silent = False
                    logger.warning(f"{name(self.folder)} answers again")
            except TakenOver:
                return
            except Exception as error:
                if not self.silent:
                    logger.warning(
                        f"{name(self.folder)} does not answer ({_cause(error)}); training goes on, and what it saves "
                        f"is kept in {_where(self.folder)} until it does"
                    )
                self.silent = True

    def _live(self) -> None:
        """Show that this process is alive, and stop it where another one has taken over."""
        try:
            self.show()
        except TakenOver as error:
            if not self.stop.is_set():  # else training is over, and the end is reported
                logger.warning(f"{error}; this one stops")
                os.kill(os.getpid(), signal.SIGTERM)  # as if somebody had stopped it: it saves, and ends
            raise

    def show(self) -> None:
        """Write a sign of life. Raises TakenOver."""
        self._require_held()
        system, key = _at(self.lock)
        system.pipe_file(key, self._mark())

    def _require_held(self) -> None:
        # A lock that is gone is not ours any more, either: who took over may have finished.
        system, key = _at(self.lock)
        with contextlib.suppress(FileNotFoundError):
            if _holder_of(system.cat_file(key)).owner == self.owner:
                return
        raise TakenOver(f"{name(self.folder)} was taken over by another process, or its .lock was removed")

    def send(self) -> None:
        """Send checkpoints that are whole and files that have changed; of the checkpoints, the newest stay.

        Raises TakenOver, and whatever a bucket fails with.
        """
        self._require_held()
        self._send_file("config.json")  # first: without it what else is there is no run
        checkpoints = self.folder / "checkpoints"
        try:
            there = _steps(_names(checkpoints))
        except FileNotFoundError:
            there = []
        for step in self._kept_here():
            if step not in there and self._send_step(step):
                there.append(step)
        for step in sorted(there)[: -self.keep]:
            _drop(checkpoints, step)
        for each in files_here(self.folder):
            if each.split("/")[0] not in UNSENT and not any(part.startswith(".") for part in each.split("/")):
                self._send_file(each)

    def _kept_here(self) -> list[int]:
        """The newest checkpoints on this machine; older ones may be half removed."""
        return _steps_here(self.folder / "checkpoints")[-self.keep :]

    def _send_step(self, step: int) -> bool:
        """Send a checkpoint, and last the list of its files; whether it has not made way for a newer one meanwhile."""
        folder = self.folder / "checkpoints" / str(step)
        sizes = {each: stat.st_size for each, stat in files_here(folder).items()}
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda each: _put(folder / each), sizes))
        except FileNotFoundError:
            if step in self._kept_here():
                raise
        if step not in self._kept_here():
            return False
        self._require_held()
        system, key = _at(folder.with_name(f"{step}.json"))
        system.pipe_file(key, json.dumps({"files": sizes}).encode())
        return True

    def _send_file(self, each: str) -> None:
        """Send a file that has changed since it was sent; where there is none, nothing."""
        try:
            stat = (self.folder / each).stat()
            if self.sent.get(each) != (stat.st_size, stat.st_mtime_ns):
                _put(self.folder / each)
                self.sent[each] = stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:
            if (self.folder / each).exists():
                raise


def _step_of(name: str) -> int | None:
    """The checkpoint that an object belongs to, as 4/meta/metadata or 4.json; None of none."""
    found = re.match(r"(\d+)(/|\.json$)", name)
    return int(found[1]) if found else None


def _holder_of(data: bytes) -> Holder:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder("", "an unknown machine", 0)


def _owner(folder: Path) -> str:
    """A name for this mirror that no other has."""
    file = folder / ".owner"
    if not file.exists():
        file.write_text(secrets.token_hex(8))
    return file.read_text()


@contextlib.contextmanager
def keeping(folder: Path, keep: int) -> Iterator[None]:
    """Hold a run in a bucket while it is trained in its mirror, and send what it saves; the newest `keep` checkpoints
    stay.

    The run is marked every few seconds, so that a second process is refused, and a dead one's run taken over. All is
    sent before this ends. Raises UserError for that, and where the bucket is missing or lets nobody in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "trained"):
        keeper = Keeper(folder, keep)
        if not keeper.take():
            (folder / ".owner").unlink()  # until the bucket's run is here, this mirror is not what goes on
            _start_from_bucket(folder)
            (folder / ".owner").write_text(keeper.owner)
        keeper.heart.start()
        try:
            whole = steps(folder / "checkpoints")
            cut_off = [each for each in files(folder / "checkpoints") if _step_of(each) not in (None, *whole)]
            remove(folder / "checkpoints" / each for each in cut_off)  # by one that was killed while it sent
            _ask(folder, keeper.send)
            keeper.sender.start()
            yield
        except BaseException:
            try:
                _finish(keeper)
            except UserError as error:
                logger.warning(str(error))  # what ended the training matters more
            raise
        _finish(keeper)


def _start_from_bucket(folder: Path) -> None:
    """Make the mirror of a run that it did not hold begin with what the bucket has."""
    old = [each for each in folder.iterdir() if not each.name.startswith(".")]
    if old:
        logger.warning(
            f"{name(folder)} is taken as the bucket has it; what this machine once could not send is removed"
        )
    for each in old:
        _clear(each)
    fetch(folder, lambda each: each in ("config.json", "metrics.jsonl"))


def _finish(keeper: Keeper) -> None:
    """Send what is left, let go of the run, and remove its mirror. Raises UserError where that fails."""
    keeper.stop.set()
    if keeper.sender.ident:  # it was started
        keeper.sender.join()
    try:
        _ask(keeper.folder, keeper.show)
        _ask(keeper.folder, keeper.send)
        keeper.over.set()
        keeper.heart.join()
        remove([keeper.lock])
        shutil.rmtree(keeper.folder)
    except (UserError, OSError) as error:
        kept = f"what it saved since is kept in {_where(keeper.folder)}"
        goes_on = "" if isinstance(error, TakenOver) else "; the same command on this machine goes on from there"
        raise UserError(f"{error}; {kept}{goes_on}") from None
    finally:
        keeper.over.set()
