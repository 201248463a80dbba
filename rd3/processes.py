"""Processes of this machine."""

from __future__ import annotations

import os


def is_running(process: int) -> bool:
    """Whether there is a process with this ID, of any user; it may be a zombie, or a later one with the same ID."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
