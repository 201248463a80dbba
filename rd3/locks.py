"""Is a file locked?  Kernel locks are released when their process ends for any reason."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Inside ``with``, hold a lock on this file between the processes of this machine; waits until it is free.

    The file is created and stays.  Where there can be no lock (a read-only folder, a file system without locks), the
    block runs without one.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock = stack.enter_context(open(path, "a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on this file; False if the file does not exist.

    Takes the lock for a moment, in which another process that does not wait for it would find it taken.
    """
    try:
        with open(path, "r+b") as stream:  # NFS locks only files that are open for writing
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
