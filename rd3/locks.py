"""Is a file locked?  Kernel locks are released when their process ends for any reason."""

from __future__ import annotations

import fcntl
from pathlib import Path


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
