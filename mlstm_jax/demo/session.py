"""One open page: what it has chosen, the text that is typed, the text that is written, the file that is scored."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio import to_thread
from anyio.abc import TaskGroup

from mlstm_jax.demo import choice as choices
from mlstm_jax.demo.choice import Choice
from mlstm_jax.demo.reading import Cells, Reader
from mlstm_jax.demo.scoring import File, scored
from mlstm_jax.demo.turns import Turns
from mlstm_jax.demo.writing import PIECE, Writer, drawn_anew
from mlstm_jax.errors import UserError
from mlstm_jax.text import EMPTY, frame, to_bytes

TEXT = 20_000  # characters that are read at most
LENGTH = 2000  # bytes that are written at most
PACE = 60  # bytes a second: slow enough to be read, and steered meanwhile
STEEPEST = 3  # deviations at which the unit is held at most


class Session:
    """All that belongs to one page. Pages share the models, which do not change, and the turns.

    What is sent of an answer has the number of its question, so that the page can tell an old one.
    """

    def __init__(self, named: Path, turns: Turns, tasks: TaskGroup, send: Callable[[dict[str, Any]], Awaitable[None]]):
        self.named, self.turns, self.tasks, self.send = named, turns, tasks, send
        self.choice: Choice | None = None
        self.reader: Reader | None = None
        self.text, self.number = "", 0
        self.k = 0.0
        self.announced: tuple[int, File] | None = None
        self.changed = asyncio.Event()
        self.writing, self.scoring = anyio.CancelScope(), anyio.CancelScope()
        tasks.start_soon(self._read)

    async def hear(self, message: Any) -> None:
        """Do what the page asks for; bytes are those of the file that it has announced.

        Raises UserError where that cannot be done, and for what no page of ours sends.
        """
        match message:
            case {
                "choose": {"model": str() | None as model, "task": str() | None as task, "unit": int() | None as unit}
            }:
                await self._choose(model, task, unit)
            case {"text": str(text), "number": int(number)}:
                self.text, self.number = text, number
                self.changed.set()
            case {"hold": int() | float() as k} if -STEEPEST <= k <= STEEPEST:
                self.k = float(k)
            case {"write": str(prime), "number": int(number), "fast": bool(fast)} if self.choice:
                self.writing.cancel()
                self.writing = anyio.CancelScope()
                self._start(self._write, number, self.writing, self.choice, prime[:TEXT], fast)
            case {"file": str(name), "column": str(column), "encoding": str(encoding), "number": int(number)}:
                self.announced = number, File(name, column or None, encoding or None)
            case bytes(data) if self.announced and self.choice:
                number, file = self.announced
                self.scoring.cancel()
                self.scoring = anyio.CancelScope()
                self._start(self._score, number, self.scoring, self.choice, file, data)
                self.announced = None
            case {"stop": "writing"}:
                self.writing.cancel()
            case {"stop": "scoring"}:
                self.scoring.cancel()
            case _:
                raise UserError("the page does not fit this program; load it again")

    async def _choose(self, model: str | None, task: str | None, unit: int | None) -> None:
        offered = choices.offered(self.named)
        name = next(iter(offered)) if model is None else model
        if name not in offered:
            raise UserError(f"there is no model {name} any more; load the page again")
        choice = await to_thread.run_sync(choices.choose, name, offered[name], task, unit)
        self.writing.cancel()
        self.scoring.cancel()
        self.choice, self.reader = choice, choices.reader(choice)
        await self.send({"chosen": choices.described(choice), "models": list(offered)})
        self.changed.set()

    def _start(self, work: Callable[..., Awaitable[None]], number: int, scope: anyio.CancelScope, *about: Any) -> None:
        """Work on the answer to a question until it is done or cancelled; an error is told."""

        async def until_done() -> None:
            with scope:
                try:
                    await work(number, *about)
                except UserError as error:
                    await self.send({"error": str(error), "number": number})

        self.tasks.start_soon(until_done)

    async def _read(self) -> None:
        """Read the text, again whenever it or what reads it has changed."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            if self.choice and self.reader:
                await self._read_text(self.choice, self.reader, self.number)

    async def _read_text(self, choice: Choice, reader: Reader, number: int) -> None:
        framed = frame(self.text[:TEXT])
        cut = len(self.text) > TEXT
        reader.edit(framed)
        while True:  # once even where nothing is new, as the page may have to forget an end
            cells = await self.turns.run(reader.advance)
            if not np.isfinite(cells.values).all():
                await self.send({"error": "the unit's values are not finite: the weights are damaged"})
                return
            end = reader.is_done and framed != EMPTY
            judged = choices.judged(choice, float(reader.values[-1])) if end else None
            await self.send({"read": number, "done": reader.is_done, "cut": cut, "judged": judged} | _shown(cells))
            if reader.is_done or self.changed.is_set():
                return

    async def _write(self, number: int, choice: Choice, prime: str, fast: bool) -> None:
        choices.held_at(choice, self.k)  # what cannot be held is an error at once
        reader = Reader(choice.model, choice.unit)
        reader.edit(to_bytes("\n " + prime))
        while not reader.is_done:
            await self.turns.run(reader.advance)
        writer = Writer(choice.model.weights, reader.state, drawn_anew())
        for _ in range(0, LENGTH, PIECE):
            text = await self.turns.run(writer.write, choices.held_at(choice, self.k))
            await self.send({"wrote": text, "number": number})
            if not fast:
                await anyio.sleep(PIECE / PACE)
        await self.send({"written": True, "number": number})

    async def _score(self, number: int, choice: Choice, file: File, data: bytes) -> None:
        async for part in scored(self.turns, choice, file, data):
            csv = part.csv.decode("latin-1")  # a character a byte, as not all of them need be UTF-8
            await self.send({"rows": part.rows, "csv": csv, "notes": part.notes, "number": number})
        await self.send({"scored": True, "number": number})


def _shown(cells: Cells) -> dict[str, Any]:
    """Cells without the two characters of the frame before a text."""
    cut = max(0, 2 - cells.start)
    return {"start": cells.start + cut - 2, "characters": cells.characters[cut:], "values": cells.values[cut:]}
