"""What lies one folder too deep, as after an archive was unpacked into a folder of its own name."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from rd3.errors import RD3Error

MOST = 1000
"""How many folders are looked at: a home or a dataset that was unpacked has few beside it."""


def one_level_down(folder: Path, holds: Callable[[Path], bool]) -> list[Path]:
    """The folders directly in ``folder`` for which ``holds`` is true, sorted; empty if it cannot be read or is none.

    Folders that cannot be read, and those for which ``holds`` raises :class:`RD3Error`, are left out.  At most
    :data:`MOST` folders are asked.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice((one for one in entries if _is_folder(one)), MOST):
            with contextlib.suppress(OSError, RD3Error):
                if holds(Path(entry.path)):
                    found.append(Path(entry.path))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
