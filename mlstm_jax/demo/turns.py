"""Whose turn it is to compute."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import from_thread, to_thread

T = TypeVar("T")


class Turns:
    """One computation at a time, first come, first served, in a thread beside the server's."""

    def __init__(self):
        self._lock = asyncio.Lock()

    async def run(self, compute: Callable[..., T], *arguments: object) -> T:
        """What `compute(*arguments)` gives. Short, or it calls `give_way` now and then."""
        async with self._lock:
            return await to_thread.run_sync(compute, *arguments)

    def give_way(self) -> None:
        """In the midst of a computation: those who wait go first. Ends it where nobody wants its result any more."""
        from_thread.check_cancelled()
        from_thread.run(self._queue_again)

    async def _queue_again(self) -> None:
        self._lock.release()
        with anyio.CancelScope(shield=True):  # `run` releases it
            await self._lock.acquire()
