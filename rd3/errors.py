"""Errors that a user can act on: one sentence of fact, then one fix.

Everything raised on purpose derives from :class:`RD3Error`; the command line prints the sentence and exits with
``exit_code``.  A recipe that ends with one of these carries ``status`` into the ledger.
"""

from __future__ import annotations

import traceback
from pathlib import Path


class RD3Error(Exception):
    """A mistake or a state of the world that the user can mend.

    ``message`` says what was got, where and what was expected; ``fix`` is one thing to do about it.
    """

    status = "failed"
    exit_code = 2

    def __init__(self, message: str, fix: str = ""):
        super().__init__(message, fix)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.fix}" if self.fix else self.message


class UnknownName(RD3Error):
    """A method, dataset, network, loss or field that does not exist."""


class BadValue(RD3Error):
    """A value of the wrong type, out of range, or contradicting another."""


class DataMissing(RD3Error):
    """Files of a dataset, a teacher or a set are not where they should be."""


class NotCarried(DataMissing):
    """A result is known, but its files were left out where it came from."""


class DataCorrupt(RD3Error):
    """Files are there, but truncated, altered or of the wrong hash."""


class ClassOrderError(RD3Error):
    """Two things that must share a class list do not."""


class Unsupported(RD3Error):
    """A pair that cannot be made, with the reason the table prints as a footnote."""

    status = "unsupported"


class Diverged(RD3Error):
    """A loss became NaN or infinite."""

    status = "diverged"


class StoreError(RD3Error):
    """The ledger or the artifact store cannot be read or written, or somebody else holds it."""


class TrackingError(RD3Error):
    """The tracking server does not answer, or is not what it should be."""


class Away(RD3Error):
    """The other side does not answer at the moment, and may again: what was asked can be asked later."""


class StoreAway(Away, StoreError):
    """The ledger or the artifact store does not answer at the moment."""


class TrackingAway(Away, TrackingError):
    """The tracking server does not answer at the moment."""


def why(error: BaseException) -> tuple[str, str]:
    """Status and reason of an error; an unexpected one names the line that raised it."""
    if isinstance(error, RD3Error):
        return error.status, str(error)
    reason = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return "oom", reason
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "failed", f"{reason} ({Path(frame.filename).name}, line {frame.lineno})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its device had no room."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


def is_device_error(error: BaseException) -> bool:
    """Whether it is a CUDA error, after which every later call of the process fails as well."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def ends_the_process(error: BaseException) -> bool:
    """Whether it concerns all that a process is making, and leaves its memory or its device in an unknown state."""
    return is_out_of_memory(error) or is_device_error(error)
