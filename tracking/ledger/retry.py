"""Retries with backoff while a server is unreachable, so that an outage of minutes only delays the work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from rd3.errors import Unavailable

T = TypeVar("T")

GIVE_UP_AFTER_S = 900.0
"""Seconds for which a server may be unreachable by default."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


def retry(
    ask: Callable[[], T],
    *,
    give_up_after_s: float = GIVE_UP_AFTER_S,
    waiting: Callable[[str], None] = lambda _message: None,
    leaving: Callable[[], bool] = lambda: False,
) -> T:
    """Call ``ask`` until it returns, with growing pauses after each :class:`Unavailable`; returns its result.

    ``ask`` must be idempotent: it may have succeeded although the reply was lost.  ``waiting`` receives the reason
    before each pause.  Raises the last :class:`Unavailable` after ``give_up_after_s`` seconds, or once ``leaving()``,
    whether this process is to end, is true.
    """
    deadline = time.monotonic() + give_up_after_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except Unavailable as error:
            if time.monotonic() + pause_s > deadline or leaving():
                raise
            waiting(error.message)
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # jitter: many trials wait for the same server
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
