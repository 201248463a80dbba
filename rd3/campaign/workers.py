"""Worker processes that live as long as the campaign, so that each loads torch once.

A worker reads its pipe in a thread, so it hears of a stop at any time, and exits as soon as its parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING

from rd3.campaign.runner import Ended, Event, Runner
from rd3.evaluation.sharing import LogitsCache
from rd3.recipe import Key, Recipe, to_json

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    keys: list[Key]
    """Keys of the recipes that it is running."""


class WorkerPool:
    """Up to ``count`` workers, started on demand."""

    def __init__(self, count: int, runner: Runner):
        self.count, self.runner = count, runner
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def has_room(self) -> bool:
        """Whether a worker is idle or another one may be started."""
        return len(self._workers) < self.count or any(not worker.keys for worker in self._workers)

    def submit(self, recipes: Sequence[Recipe], cached_logits: Mapping[Key, LogitsCache] | None = None) -> None:
        """Send recipes to an idle worker; ``cached_logits``: how evaluations handle cached teacher logits, by key."""
        worker = next((worker for worker in self._workers if not worker.keys), None) or self._start()
        worker.keys = [recipe.key for recipe in recipes]
        with contextlib.suppress(OSError):  # it died meanwhile, which is detected when events are read
            worker.pipe.send(([to_json(recipe) for recipe in recipes], cached_logits))

    def end_idle(self) -> None:
        """Terminate idle workers, which still hold memory of earlier recipes."""
        for worker in [worker for worker in self._workers if not worker.keys]:
            self._end(worker)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_worker_main, args=(theirs, self.runner), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, ours, [])
        self._workers.append(worker)
        return worker

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Events since the last call; waits up to ``timeout_s`` seconds for the first one."""
        ready = set(connection.wait([worker.pipe for worker in self._workers], timeout_s))
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            yield from self._received(worker)

    def _received(self, worker: _Worker) -> Iterator[Event]:
        try:
            while worker.pipe.poll():
                event = worker.pipe.recv()
                if isinstance(event, Ended):
                    worker.keys.remove(event.key)
                yield event
                if isinstance(event, Ended) and event.broken:  # by an error after which the process must run nothing
                    yield from self._lost(worker, event.reason)
                    return
        except (EOFError, OSError):
            worker.process.join()
            yield from self._lost(worker, _exit_reason(worker.process.exitcode))

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Ended]:
        """Ends of the recipes that a worker has not finished."""
        self._end(worker)
        for key in worker.keys:
            yield Ended(key, "killed", reason, broken=True)

    def request_stop(self) -> None:
        """Ask every worker to stop at its next progress report, which it confirms with an event."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.process.kill()
        for worker in list(self._workers):
            self._end(worker)


def _exit_reason(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was killed by {signal.Signals(-exitcode).name}"
    return f"its process ended with code {exitcode}"


def _worker_main(pipe: connection.Connection, runner: Runner) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the whole process group; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    tasks: queue.SimpleQueue[tuple[list[str], Mapping[Key, LogitsCache] | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        while True:
            try:
                task = pipe.recv()
            except (EOFError, OSError):
                os._exit(1)
            if task is None:
                stop.set()
            else:
                tasks.put(task)

    threading.Thread(target=listen, daemon=True).start()
    runner.prepare()
    going_on = True
    while going_on:
        documents, cached_logits = tasks.get()
        going_on = runner.run(documents, pipe.send, stop.is_set, cached_logits)  # False once an end was `broken`
