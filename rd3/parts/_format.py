"""The format of parts: limits, members and valid paths."""

from __future__ import annotations

import re

from pydantic import Field

from rd3.recipe import KINDS
from rd3.values import Frozen

PART_BYTES = 16_000_000
SHARD_BYTES = 15_000_000
PARTS = 6
"""Most parts: a machine of the kit (docs/offline.md) returns eight files; one is a log, one the part being written."""
INDEX = "parts.json"
NOTES = "notes"
"""Files besides the results: benchmark tables, reasons of failures."""
MARGIN = 1000
"""Bytes of a part reserved for its directory and index, and for each member."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")
_KEY = re.compile(r"[0-9a-f]{64}")
PATTERN = "results-*.zip"


class Member(Frozen):
    """One member of a part: a file, or its shard number ``shard`` (from 1) of ``of``."""

    path: str
    """Path relative to the store's folder, with /."""
    sha256: str
    """sha256 of the member."""
    size: int = Field(ge=0)
    shard: int = Field(default=1, ge=1)
    of: int = Field(default=1, ge=1, le=1000)

    @property
    def name(self) -> str:
        """Name in the zip file."""
        return self.path if self.of == 1 else f"{self.path}.{self.shard}of{self.of}"


def is_safe_path(name: str) -> bool:
    """Whether this is a relative path of plain names, without hidden files or ``..``."""
    return len(name) < 1000 and all(_NAME.fullmatch(part) for part in name.split("/"))


def is_result_path(name: str) -> bool:
    """Whether this is a path in a store or of a note."""
    if not is_safe_path(name):
        return False
    match name.split("/"):
        case ["by-key", kind, file]:
            return kind in KINDS and file.endswith(".json") and bool(_KEY.fullmatch(file.removesuffix(".json")))
        case ["artifacts", kind, key, _first, *_rest]:
            return kind in KINDS and bool(_KEY.fullmatch(key))
        case [top, _first, *_rest]:
            return top == NOTES
    return False
