"""Collect the entries of a growing store into parts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rd3.kept_students import without_student
from rd3.parts._format import INDEX, MARGIN, NOTES, PART_BYTES, PARTS, SHARD_BYTES, Member, is_safe_path
from rd3.recipe import KINDS
from rd3.store import STUDENT, Entry


class Piece(NamedTuple):
    """A member of a part, with where its bytes come from."""

    member: Member
    source: Path | bytes
    """The file that the piece belongs to, or its content."""
    offset: int = 0

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else _read(self.source, self.offset, self.member.size)


@dataclass
class Collector:
    """Keeps parts in ``target`` with all entries that a store has gained since the start."""

    store: Path
    target: Path
    notes: Path | None = None
    """Folder of additional files; small ones are included, as of the last collection."""
    parts: int = PARTS
    part_bytes: int = PART_BYTES
    shard_bytes: int = SHARD_BYTES
    known: set[Path] = field(default_factory=set)
    """Entries that existed before and are not collected."""
    left_out: dict[str, str] = field(default_factory=dict)
    """``kind key`` to the reason, for entries that did not fit, or not with their student, or whose file names fail."""

    def __post_init__(self) -> None:
        self._closed = 0  # parts that are full and not written again
        self._open: list[Piece] = []  # the content of the part after these
        self._written = True  # whether that part has all of `_open`
        self._noted: list[tuple[str, int]] = []  # names and times of the notes in it

    def _entries(self) -> list[Path]:
        """Entries in the order in which they were written."""
        paths = [path for kind in KINDS for path in (self.store / "by-key" / kind).glob("*.json")]
        return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def collect(self) -> int:
        """Update the parts; returns the number of new entries.

        What cannot be read or written does not keep other entries out, and is tried again by the next call; raises its
        :class:`OSError`.
        """
        added = 0
        failed: OSError | None = None
        for path in [path for path in self._entries() if path not in self.known]:
            closed, held = self._closed, list(self._open)
            self.known.add(path)
            try:
                added += self._add(path)
            except OSError as error:  # as if it had not been tried
                self.known.remove(path)
                self._closed, self._open = closed, held
                failed = failed or error
        noted = [(path.name, path.stat().st_mtime_ns) for path in self._notes()]
        if not self._written or noted != self._noted:
            self._write_open()
            self._written, self._noted = True, noted
        if failed is not None:
            raise failed
        return added

    def _notes(self) -> list[Path]:
        paths = sorted(self.notes.rglob("*")) if self.notes is not None else []
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    def _add(self, path: Path) -> bool:
        """Place a new entry; False if it is left out."""
        name, raw = f"{path.parent.name} {path.stem}", path.read_bytes()
        entry = Entry.model_validate_json(raw)
        document = path.relative_to(self.store).as_posix()
        pieces = [*self._pieces(entry), _whole(document, raw)]
        wrong = next((piece.member.path for piece in pieces if not is_safe_path(piece.member.name)), None)
        if wrong is not None:
            self.left_out[name] = f"the file name {wrong!r} has characters that parts do not take, or is too long"
            return False
        # Students go into the first half of the parts only, as they would take the room of results.
        if STUDENT in entry.files and not self._fits(pieces, (self.parts + 1) // 2):
            size = (self.store / "artifacts" / entry.kind / entry.key / STUDENT).stat().st_size
            self.left_out[name] = f"its student of {size / 1e6:.1f} MB does not fit, the result does"
            entry = without_student(entry)
            pieces = [*self._pieces(entry), _whole(document, entry.model_dump_json(indent=1).encode())]
        if not self._fits(pieces, self.parts):
            size = sum(piece.member.size for piece in pieces)
            self.left_out[name] = f"{size / 1e6:.1f} MB do not fit into {self.parts} files"
            return False
        for piece in pieces:
            self._place(piece)
        return True

    def _pieces(self, entry: Entry) -> Iterator[Piece]:
        """The files of an entry."""
        folder = self.store / "artifacts" / entry.kind / entry.key
        for name in entry.files:
            source = folder / name
            path = source.relative_to(self.store).as_posix()
            of = max(1, math.ceil(source.stat().st_size / self.shard_bytes))
            for shard in range(1, of + 1):
                offset = (shard - 1) * self.shard_bytes
                content = _read(source, offset, self.shard_bytes)
                sha256 = hashlib.sha256(content).hexdigest()
                yield Piece(Member(path=path, sha256=sha256, size=len(content), shard=shard, of=of), source, offset)

    def _fits(self, pieces: Sequence[Piece], parts: int) -> bool:
        """Whether all pieces of an entry fit into so many parts in all; simulates :meth:`_place`."""
        closed, used = self._closed, _weight(self._open)
        for piece in pieces:
            if used + _weight([piece]) > self.part_bytes - MARGIN:
                closed, used = closed + 1, 0
            used += _weight([piece])
        return closed < parts

    def _place(self, piece: Piece) -> None:
        if self._open and _weight([*self._open, piece]) > self.part_bytes - MARGIN:
            self._write(self._open)
            self._closed, self._open = self._closed + 1, []
        self._open.append(piece)
        self._written = False

    def _write_open(self) -> None:
        """Write the part that is not full yet, with the notes that fit into it."""
        pieces = list(self._open)
        for source in self._notes():
            assert self.notes is not None
            name = f"{NOTES}/{source.relative_to(self.notes).as_posix()}"
            piece = _whole(name, source.read_bytes())  # read once, as it may be written to meanwhile
            if is_safe_path(name) and _weight([*pieces, piece]) <= self.part_bytes - MARGIN:
                pieces.append(piece)
        if pieces:
            self._write(pieces)

    def _write(self, pieces: Sequence[Piece]) -> None:
        path = self.target / f"results-{self._closed + 1}.zip"
        self.target.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}")
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as opened:
            index = {"format": 1, "members": [piece.member.model_dump() for piece in pieces]}
            opened.writestr(INDEX, json.dumps(index))
            for piece in pieces:
                opened.writestr(piece.member.name, piece.content())
        os.replace(scratch, path)


def _whole(name: str, content: bytes) -> Piece:
    """A file, of the path ``name`` in the store, as one piece that holds its content."""
    return Piece(Member(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content)), content)


def _read(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _weight(pieces: Sequence[Piece]) -> int:
    """Upper bound of the bytes that pieces take in a part, including their names in the index and the directory."""
    return sum(piece.member.size + MARGIN for piece in pieces)
