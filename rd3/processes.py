"""Processes of this machine, their standard streams and their folder for temporary files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rd3.errors import StoreError


@contextlib.contextmanager
def temporary_folder_errors() -> Iterator[None]:
    """Convert the error of :mod:`tempfile` (and of libraries on import) without a usable folder to a StoreError."""
    try:
        yield
    except FileNotFoundError as error:
        _before, marker, tried = str(error).partition("No usable temporary directory found in ")
        if not marker:
            raise
        raise StoreError(
            f"Temporary files cannot be written: each of {tried} is missing, full or not writable.",
            "free space there, or set TMPDIR to a folder that can be written",
        ) from None


def open_standard_streams() -> None:
    """Open what a caller has closed of stdin, stdout and stderr (``>&-``, cron), to nowhere.

    Otherwise Python has None in their place, and the next file that is opened would receive what libraries print.
    """
    for number, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def is_running(process: int) -> bool:
    """Whether there is a process with this ID, of any user; it may be a zombie, or a later one with the same ID."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
