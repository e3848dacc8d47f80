"""The page's server: its files, and a socket for every page that is open. Nothing comes from outside."""

import contextlib
import json
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlstm_jax.demo.session import Session
from mlstm_jax.demo.turns import Turns
from mlstm_jax.errors import UserError

FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    # All that the page loads is this server's, and no string becomes markup or a script.
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MESSAGE = 8 << 20  # bytes that a page may send at once: those of a file


def application(named: Path, names: Collection[str] | None = LOOPBACK) -> Starlette:
    """The page, on the model at `named` at first. It answers where its host is called by these names; None is any."""
    turns = Turns()

    async def live(websocket: WebSocket) -> None:
        async def tell(message: dict[str, Any]) -> None:
            with contextlib.suppress(WebSocketDisconnect):  # `receive` says so, too
                await websocket.send_text(json.dumps(message))  # ASCII: a lone surrogate is no UTF-8

        await websocket.accept()
        async with anyio.create_task_group() as tasks:
            session = Session(named, turns, tasks, tell)
            while (message := await websocket.receive())["type"] != "websocket.disconnect":
                try:
                    data = message.get("bytes")
                    await session.hear(json.loads(message["text"]) if data is None else data)
                except (UserError, ValueError, RecursionError) as error:
                    await tell({"error": str(error)})
                except OSError as error:
                    await tell({"error": f"{error.filename}: {error.strerror}"})
            tasks.cancel_scope.cancel()

    pages = [Route(path, _file(name)) for path, name in FILES.items()]
    guard = Middleware(Guard, names=names)
    return Starlette(routes=[*pages, WebSocketRoute("/live", live)], middleware=[guard])


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    path = Path(__file__).parent / name
    content, kind = path.read_bytes(), KINDS[path.suffix]

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


class Guard:
    """Refuses what another site's page asks for, under its own name or under one that was made to lead here."""

    def __init__(self, app: ASGIApp, names: Collection[str] | None):
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the page itself asks for; what is answered has `HEADERS`."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] in ("http", "websocket") and not self._is_own(Headers(scope=scope)):
            refusal = PlainTextResponse("this server answers to its own page only", 403)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await refusal(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)

    def _is_own(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname
            same = origin is None or urlsplit(origin).netloc == host
        except ValueError:
            return False
        return same and (self.names is None or name in self.names)


def server(app: Starlette) -> uvicorn.Server:
    """What answers until a signal ends it, on the sockets that its `run` is given. Open pages do not keep it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            ws_max_size=MESSAGE,
            lifespan="off",
            log_config=None,  # errors go where warnings of any library go
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
