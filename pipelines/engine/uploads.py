"""When a worker uploads unfinished work: now and then, and before its process ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rd3.perform import Progress

if TYPE_CHECKING:
    from tracking.runs.unfinished import UnfinishedWork

_in_progress: set[UnfinishedWork] = set()
"""Unfinished work of the recipes that this process is running."""


def upload_unfinished() -> None:
    """Upload completed work of the recipes in progress, as the process is about to end."""
    for unfinished in list(_in_progress):
        unfinished.upload(leaving=True)


@contextlib.contextmanager
def uploaded_on_exit(unfinished: UnfinishedWork | None) -> Iterator[None]:
    """Register unfinished work, so that :func:`upload_unfinished` uploads it."""
    _in_progress.update({unfinished} if unfinished is not None else ())
    try:
        yield
    finally:
        if unfinished is not None:
            _in_progress.discard(unfinished)


def uploading(progress: Progress, unfinished: UnfinishedWork) -> Progress:
    """Upload when the note changes: at the start of a block or an epoch, where no phase of a set is being timed."""
    last = [""]

    def report(fraction: float, note: str) -> None:
        progress(fraction, note)
        if note != last[0]:
            last[0] = note
            unfinished.upload()

    return report
