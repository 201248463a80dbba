"""CSV text: the one place where tables become CSV."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable

_STARTS = ("=", "+", "-", "@", "\t", "\n")
"""First characters of a cell that spreadsheets compute; they also read full-width forms."""
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?( \[[-+\u2212\d., ]+\])?")
"""A number, alone or with its interval."""


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """Lines of cells as CSV.

    A text that a spreadsheet would compute gets a ``'`` before it, which makes it a text there; numbers stay.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_as_text(cell) for cell in line] for line in lines)
    return out.getvalue()


def _as_text(cell: object) -> object:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n")  # the writer does not quote "\r"
    return "'" + text if unicodedata.normalize("NFKC", text[:1]) in _STARTS else text
