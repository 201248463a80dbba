"""Read a study, as a read-only store."""

from __future__ import annotations

import re
from pathlib import Path

from rd3.errors import DataCorrupt, DataMissing, FilesNotExported, StoreError
from rd3.recipe import KINDS, Key, kind_order
from rd3.store import STUDENT, Entry, check_files
from rd3.study.rows import RowsFile

RESULTS = "results.parquet"
SHEET = "contact_sheet.png"


def part_of(entry: Entry) -> Path | None:
    """Path in a study of the Parquet file with an entry's files; None for small ones, in ``results.parquet`` itself."""
    kind = KINDS[entry.kind]
    return Path(kind.plural) / f"{_name(entry)}.parquet" if kind.holds != "curves" else None


def sheet_of(entry: Entry) -> Path:
    """Path in a study of the contact sheet of a set."""
    return Path("sheets") / f"{_name(entry)}.png"


def _name(entry: Entry) -> str:
    """Readable file name: method and IPC of a set, or network of a teacher, and the beginning of the key."""
    words = [word[:40] for word in KINDS[entry.kind].file_words(entry.recipe)]
    return "-".join([re.sub(r"[^\w.]+", "-", word) for word in words] + [entry.key[:12]])


class Study:
    """A :class:`rd3.store.ReadableStore` for a study's folder or one of its Parquet files.

    Fetched files are unpacked into ``scratch``.  A set without an image in ``sheets/`` has no contact sheet, and an
    evaluation never has the weights of its student.
    """

    def __init__(self, path: Path, scratch: Path):
        path = Path(path)
        self.root = path if path.is_dir() else path.parent
        self.path = path / RESULTS if path.is_dir() else path
        self._scratch = scratch
        if not self.path.is_file():
            raise DataMissing(f"There is no file {self.path}.", "give a folder written by `rd3 export-results --study`")
        self._rows = RowsFile(self.path)

    def names(self) -> list[tuple[str, Key]]:
        """(kind, key) of every entry, in the order of ``KINDS``."""
        return sorted(self._rows.entries, key=lambda name: (kind_order(name[0]), name[1]))

    def find(self, kind: str, key: Key) -> Entry | None:
        """The entry, or None if there is none."""
        entry = self._rows.entries.get((kind, key))
        if entry is None:
            return None
        lacking = {STUDENT} | ({SHEET} if self._lacks_only_sheet(entry) else set())
        return entry.model_copy(
            update={"files": {name: sha for name, sha in entry.files.items() if name not in lacking}}
        )

    def _lacks_only_sheet(self, entry: Entry) -> bool:
        if SHEET not in entry.files or (self.root / sheet_of(entry)).is_file():
            return False
        part = part_of(entry)
        return bool(self._rows.carried(entry.kind, entry.key)) or bool(part and (self.root / part).is_file())

    def fetch(self, kind: str, key: Key) -> Path:
        """A folder with the verified files; raises :class:`FilesNotExported` if the study does not include them."""
        entry = self.find(kind, key)
        if entry is None:
            raise DataMissing(f"{self.path} has no {kind} {key[:12]}.", "make or import it first")
        what = f"{kind} {key[:12]} of {self.path}"
        carried = self._carried(entry)
        if not set(entry.files) <= set(carried):
            raise FilesNotExported(f"The files of {what} are not in the study.", "make or import it again")
        folder = self._scratch / kind / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in entry.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(carried[name])
        except OSError as error:
            raise StoreError(
                f"Cannot unpack {what} to {folder}: {error.strerror}.", "free space or choose another folder"
            ) from None
        check_files(folder, entry.files, what)
        return folder

    def _carried(self, entry: Entry) -> dict[str, bytes]:
        """All files of the entry in the study: from its row, its own Parquet file, and its contact sheet."""
        found = dict(self._rows.carried(entry.kind, entry.key))
        part, sheet = part_of(entry), self.root / sheet_of(entry)
        if part is not None and (self.root / part).is_file():
            rows = RowsFile(self.root / part)
            if (entry.kind, entry.key) not in rows.entries:
                what = f"{rows.path} does not hold {entry.kind} {entry.key[:12]}, contrary to its name."
                raise DataCorrupt(what, "download that file again")
            found |= rows.carried(entry.kind, entry.key)
        if SHEET in entry.files and sheet.is_file():
            found[SHEET] = sheet.read_bytes()
        return found
