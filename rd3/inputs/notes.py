"""What was found in an input that is accepted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple


class Note(NamedTuple):
    """One sentence about an input."""

    text: str
    doubtful: bool = False
    """Whether it may be a mistake, and not just a conversion that loses nothing."""


Say = Callable[[Note], None]
"""Receives the notes on an input."""


def warn_of_doubts(note: Note) -> None:
    """Issue a doubtful note as a Python warning; the default where there is no command line."""
    if note.doubtful:
        warnings.warn(note.text, UserWarning, stacklevel=2)
