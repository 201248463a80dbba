"""Worker processes that live as long as the campaign: torch is loaded once in each.

A worker reads its pipe in a thread, so it hears at any time that it shall stop, and leaves at once when the process
that started it is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rd3.campaign.maker import Ended, Event, Say
from rd3.recipe import Key, Recipe, to_json

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess


class Makes(Protocol):
    """What a worker does: see :class:`rd3.campaign.maker.Maker`."""

    def prepare(self) -> None: ...

    def make(self, documents: Sequence[str], say: Say, stopping: Callable[[], bool]) -> bool: ...


class Died(NamedTuple):
    """A worker is gone with these recipes unfinished."""

    keys: tuple[Key, ...]
    reason: str


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    keys: list[Key]
    """What it has in hand."""


class Crew:
    """Up to ``count`` workers, started when there is something to do for them."""

    def __init__(self, count: int, maker: Makes):
        self.count, self.maker = count, maker
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def has_room(self) -> bool:
        """Whether a worker is idle, or may be started."""
        return len(self._workers) < self.count or any(not worker.keys for worker in self._workers)

    def hand(self, recipes: Sequence[Recipe]) -> None:
        """Give recipes to one worker."""
        worker = next((worker for worker in self._workers if not worker.keys), None) or self._start()
        worker.keys = [recipe.key for recipe in recipes]
        with contextlib.suppress(OSError):  # it died meanwhile, which is seen when events are read
            worker.pipe.send([to_json(recipe) for recipe in recipes])

    def dismiss(self) -> None:
        """End the workers that are idle, which hold memory of what they made."""
        for worker in [worker for worker in self._workers if not worker.keys]:
            self._bury(worker)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self.maker), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, [])
        self._workers.append(worker)
        return worker

    def events(self, timeout_s: float) -> Iterator[Event | Died]:
        """What workers said since, waiting for it as long as ``timeout_s``."""
        ready = set(connection.wait([worker.pipe for worker in self._workers], timeout_s))
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            yield from self._heard(worker)

    def _heard(self, worker: _Worker) -> Iterator[Event | Died]:
        try:
            while worker.pipe.poll():
                event = worker.pipe.recv()
                if isinstance(event, Ended):
                    worker.keys.remove(event.key)
                yield event
                if isinstance(event, Ended) and event.broken:
                    yield from self._lost(worker, event.reason)
                    return
        except (EOFError, OSError):
            worker.process.join()
            yield from self._lost(worker, _how(worker.process.exitcode))

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Died]:
        self._bury(worker)
        if worker.keys:
            yield Died(tuple(worker.keys), reason)

    def ask_to_stop(self) -> None:
        """Each worker leaves what it makes at the next chance, and then says so."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)

    def close(self) -> None:
        """End all workers, at once."""
        for worker in self._workers:
            worker.process.kill()
        for worker in list(self._workers):
            self._bury(worker)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with code {exitcode}"


def _work(pipe: connection.Connection, maker: Makes) -> None:
    """A worker's life."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group; who started this one decides
        signal.signal(number, signal.SIG_IGN)
    tasks: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                documents = pipe.recv()
            except (EOFError, OSError):
                os._exit(1)
            if documents is None:
                stop.set()
            else:
                tasks.put(documents)

    threading.Thread(target=listen, daemon=True).start()
    maker.prepare()
    while maker.make(tasks.get(), pipe.send, stop.is_set):
        pass
