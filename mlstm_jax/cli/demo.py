"""A page in the browser: type and see the unit move, write with it held, score a file.

mlstm demo runs/quickstart      # after mlstm eval has found the unit
"""

import ipaddress
import socket
from pathlib import Path

import tyro

from mlstm_jax.cli.program import log
from mlstm_jax.errors import UserError


def main(run: Path | None = None, /, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve a page to this machine: type and see the sentiment unit move, write with it held, score a file.

    The page loads nothing from other hosts. Ctrl-C ends it.

    Args:
        run: A run folder, or another program's weights; by default the run with the newest checkpoint, or where there
            is none the model that comes with the package. The page offers these, too.
        host: The address to listen at. Any but a loopback one lets everybody in who can reach it.
        port: The port; 0 is any that is free.
    """
    try:
        import websockets  # noqa: F401  # without it uvicorn serves the page, and nothing moves in it

        from mlstm_jax.demo import choice, server  # late, because they import jax: --help stays quick
    except ModuleNotFoundError as error:
        if error.name not in ("anyio", "starlette", "uvicorn", "websockets"):
            raise
        raise UserError(f"the page needs {error.name}; pip install 'mlstm-jax[demo]'") from None
    from mlstm_jax.inference import language_model

    named = language_model.resolved(run)
    with listen(host, port) as listening:  # what is wrong with port or model is an error now
        choice.opened(named)
        address, number = listening.getsockname()[:2]
        names = {*server.LOOPBACK, address} if ipaddress.ip_address(address).is_loopback else None
        name, shown = next(iter(choice.offered(named))), f"[{address}]" if ":" in address else address
        log(f"{name} is at http://{shown}:{number}/ (Ctrl-C ends it)")
        server.server(server.application(named, names)).run(sockets=[listening])


def run(args: list[str]) -> None:
    """`mlstm demo` with these arguments."""
    tyro.cli(main, prog="mlstm demo", args=args)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Raises UserError where that cannot be."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port takes 0 to 65535, not {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # Python repeats the address
        raise UserError(
            f"{host}, port {port}: {why}; name another with --host or --port (0 is any that is free)"
        ) from None
