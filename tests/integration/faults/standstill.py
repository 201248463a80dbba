"""A recipe that stands still while a fault strikes: nothing depends on how fast the machine is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.engine import trial_log

Event = dict[str, Any]


@contextlib.contextmanager
def held(
    home: Path, find: Callable[[], Event | None], until: Callable[[Callable[[], Event | None]], Event]
) -> Iterator[Event]:
    """Within the block the process of a recipe in flight is stopped (SIGSTOP), so that it cannot finish meanwhile.

    ``find`` gives the last line of such a recipe in the log of ``home``; ``until`` waits for it.
    """
    victim = until(lambda: _stopped(home, find))
    try:
        yield victim
    finally:
        _go_on(victim["pid"])


def _stopped(home: Path, find: Callable[[], Event | None]) -> Event | None:
    """What was found, with its process stopped; None if there is none, or it had gone on before that."""
    found = find()
    if found is None or not _stop(found["pid"]):
        return None
    *_before, last = trial_log.events(home, found["key"])
    if last == found:
        return found
    _go_on(found["pid"])
    return None


def _stop(process: int) -> bool:
    """Stop a process; whether it still was there."""
    state = ""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(process, signal.SIGSTOP)
        while state not in ("T", "Z"):
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


def _go_on(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
