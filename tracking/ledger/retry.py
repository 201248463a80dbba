"""Waits for a server that is away: an outage of minutes costs nothing but time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from rd3.errors import Away

T = TypeVar("T")

PATIENCE_S = 900.0
"""How long a server may be away before what waits for it gives up."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


def _silent(_message: str) -> None:
    """Nobody is told."""


def retry(
    ask: Callable[[], T],
    *,
    give_up_after_s: float = PATIENCE_S,
    waiting: Callable[[str], None] = _silent,
    leaving: Callable[[], bool] = lambda: False,
) -> T:
    """What ``ask`` returns, asked again with growing pauses while it raises :class:`Away`.

    ``ask`` must be fit to be done twice: it may have succeeded without a word.  ``waiting`` is told the reason before
    each pause; ``leaving`` ends the waiting, as ``give_up_after_s`` does, and the last :class:`Away` is raised.
    """
    deadline = time.monotonic() + give_up_after_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except Away as error:
            if time.monotonic() + pause_s > deadline or leaving():
                raise
            waiting(error.message)
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # many trials wait for the same server
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
