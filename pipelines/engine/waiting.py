"""What a trial waits for, shown by its progress: servers, and the lock on a recipe's work folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rd3.errors import RD3Error
from rd3.perform import Progress
from rd3.processes import is_suspended
from tracking.ledger.retry import retry

T = TypeVar("T")

ORPHAN_WAIT_S = 120.0
"""How long a new attempt waits for an orphan of a killed driver to release the recipe's folder."""


def retry_shown(ask: Callable[[], T], progress: Progress, fraction: float = 0.0) -> T:
    """Call a server with retries while it is unreachable; ``fraction``: progress that is shown meanwhile."""
    return retry(ask, waiting=lambda reason: progress(fraction, f"waiting: {reason}"))


@contextlib.contextmanager
def alone_in(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a recipe's folder, a kernel lock, which is released when the process ends for any reason."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                if time.monotonic() > deadline:
                    raise RD3Error(
                        f"Process {holder} still uses {folder} after {ORPHAN_WAIT_S:.0f} s.",
                        f"end process {holder}",
                    ) from None
                suspended = holder.isdigit() and is_suspended(int(holder))
                advice = f", which is suspended: kill -CONT {holder} continues it" if suspended else ""
                progress(0.0, f"waiting for process {holder} to end{advice}")
                time.sleep(0.1)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
