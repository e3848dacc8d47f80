"""How a program ends: errors, signals, a reader that has gone."""

import io
import os
import re
import sys
from collections.abc import Callable

from mlstm_jax import signals
from mlstm_jax.config import at_home
from mlstm_jax.errors import UserError
from mlstm_jax.signals import mute
from mlstm_jax.text import log


def script(main: Callable[[], int | None]) -> None:
    """Run a script's main; a UserError becomes one line and exit status 2, a signal ends with 128 + its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")  # samples are UTF-8, whatever the locale
    sys.argv[1:] = [at_home(arg) for arg in sys.argv[1:]]
    asked = signals.Asked()
    try:
        asked.watch()
        status = main()
        asked.done()
    except BaseException as error:
        asked.done()
        status = 0 if asked.number else _explain(error)
    if asked.number:
        signals.leave(asked.number)
    sys.exit(status)


def _explain(error: BaseException) -> int | str | None:
    """The exit status after an error that a user can do something about, which becomes one line; others are raised."""
    if isinstance(error, SystemExit):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        mute()
        return 141
    if isinstance(error, UserError):
        line = str(error)
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        line = (
            "there is not enough memory; take fewer --batch-size, a shorter --seq-length, a smaller model or larger "
            "machine"
        )
    elif isinstance(error, RuntimeError) and re.search("initialize backend|known backends", str(error)):
        asked = os.environ.get("JAX_PLATFORMS", "")
        line = f"jax finds no device for JAX_PLATFORMS={asked}; unset it, or name what is there, as JAX_PLATFORMS=cpu"
    elif isinstance(error, OSError):  # a folder that cannot be written, a name that is too long
        line = f"{error.filename or 'the system'}: {error.strerror or error}"
    else:
        raise error
    log(f"error: {' '.join(line.splitlines())}", sys.stderr)
    return 2
