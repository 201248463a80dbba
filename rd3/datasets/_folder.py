"""Class folders: ``train/<class>/...`` and ``val/<class>/...`` as in the ImageNet family's archives."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rd3.datasets._base import DatasetInfo
from rd3.datasets._cache import content_hash
from rd3.datasets._records import Found, Records
from rd3.errors import DataCorrupt, DataMissing
from rd3.foreign_files import broken_file
from rd3.inputs.files import fix_of_layout, is_image_file, require_regular, subfolders
from rd3.inputs.names import match_names
from rd3.one_level import one_level_down

_SMALL = 200
"""Files of fewer bytes are checked: pointers of Git LFS have fewer, images hardly ever."""
INNER = ("", "images/")
"""Folders below a class's folder that are read."""


class File(NamedTuple):
    """One image file."""

    name: str
    """File name relative to the folder of the split."""
    label: int
    bytes: int
    time_ns: int


def image_files(folder: Path, prefix: str, label: int) -> list[File]:
    """The image files directly in a folder, sorted by name; ``prefix`` is prepended to the names."""
    with os.scandir(folder) as entries:
        images = [entry for entry in entries if is_image_file(entry.name) and not entry.is_dir()]
    stats = [(entry.name, _stat(entry)) for entry in images]
    return sorted(File(prefix + name, label, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        found = entry.stat()
    except OSError as error:
        raise DataMissing(f"Cannot read {entry.path}: {error.strerror}.", "restore that file or its link") from None
    require_regular(entry.path, found)
    return found


class FolderRecords(Records):
    """Image files below one folder."""

    def __init__(self, root: Path, files: Iterable[File]):
        self.root = root
        table = list(files)
        # Names are kept as one array of bytes: 1.28 million strings would take 150 MiB in every process.
        encoded = [os.fsencode(file.name) for file in table]
        self._names = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._labels = np.array([file.label for file in table], dtype=np.int64)
        self._sizes = np.array([file.bytes for file in table], dtype=np.int64)
        self._times = np.array([file.time_ns for file in table], dtype=np.int64)

    @classmethod
    def scan(cls, root: Path, info: DatasetInfo) -> FolderRecords:
        """All images in ``root/<class>`` or ``root/<class>/images``, by label and then by name.

        Raises :class:`DataMissing` or :class:`DataCorrupt` if the folder or that of a class is missing.
        """
        files: list[File] = []
        for label, name in sorted(_all_class_folders(root, info).items()):
            for inner in INNER:
                folder = root / name / inner
                if folder.is_dir():
                    files += image_files(folder, f"{name}/{inner}", label)
        return cls(root, files)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def name(self, index: int) -> str:
        """The relative name of one file."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])].tobytes())

    def where(self, index: int) -> str:
        return str(self.root / self.name(index))

    def encoded(self, index: int) -> bytes:
        path = self.root / self.name(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataMissing(f"Cannot read {path}: {error.strerror}.", "download that file again") from error

    def check(self) -> None:
        """Raise for files too small for an image: empty ones, and pointers of Git LFS."""
        for index in np.flatnonzero(self._sizes < _SMALL):
            if error := broken_file(self.where(int(index))):
                raise error

    def some(self, indexes: np.ndarray) -> Iterator[tuple[int, bytes]]:
        return ((index, self.encoded(index)) for index in map(int, indexes))

    def copies_in(self, other: Records, most: int) -> tuple[int, int]:
        """As for other records; reads at most ``most`` files of each, of equal sizes: others cannot be copies."""
        assert isinstance(other, FolderRecords)
        possible = np.flatnonzero(np.isin(self._sizes, other._sizes))
        ours, compared = possible[:most], int(possible[most]) if len(possible) > most else len(self)
        theirs = np.flatnonzero(np.isin(other._sizes, self._sizes[ours]))[:most]
        known = {sha256(other.encoded(int(index))).digest() for index in theirs}
        return sum(sha256(self.encoded(int(index))).digest() in known for index in ours), compared

    def __iter__(self) -> Iterator[bytes]:
        return map(self.encoded, range(len(self)))

    def take(self, positions: np.ndarray) -> FolderRecords:
        """The images at these positions, in the given order."""
        columns = (self._labels, self._sizes, self._times)
        return FolderRecords(
            self.root, (File(self.name(int(i)), *(int(column[i]) for column in columns)) for i in positions)
        )

    def content(self) -> list[np.ndarray]:
        """Names, labels and sizes, for the fingerprint of streamed folders."""
        return [self._names, self._ends, self._labels, self._sizes]

    def stamp(self) -> list[str]:
        return [content_hash([*self.content(), self._times], [])]


def class_folders(root: Path, class_ids: Sequence[str]) -> dict[int, str]:
    """The name of the folder of every label that has one; it may be spelled otherwise, as :func:`match_names` says."""
    exact = {label: class_id for label, class_id in enumerate(class_ids) if (root / class_id).is_dir()}
    if len(exact) == len(class_ids):
        return exact
    return {label: name for name, label in match_names(subfolders(root), class_ids).items()}


def _all_class_folders(root: Path, info: DatasetInfo) -> dict[int, str]:
    """The name of the folder of every label; raises if one is missing."""
    if not root.is_dir():
        raise DataMissing(f"{root} does not exist.", f"extract the complete archive of {info.name}")
    there = class_folders(root, info.class_ids)
    missing = [class_id for label, class_id in enumerate(info.class_ids) if label not in there]
    if missing:
        if not there and (deeper := one_level_down(root, lambda one: (one / info.class_ids[0]).is_dir())):
            message = f"The class folders of {root} are a level deeper, in {deeper[0]}."
            raise DataCorrupt(message, move_up(deeper[0]))
        raise DataCorrupt(
            f"{root} has {info.num_classes - len(missing)} of the {info.num_classes} class folders of {info.name}; "
            f"the first missing one is {missing[0]}.",
            (None if there else _how_to_sort(root, missing[0])) or f"extract the complete archive of {info.name}",
        )
    return there


def move_up(deeper: Path) -> str:
    """What to do with a folder whose content belongs into the folder above it."""
    return f"move its content up: mv {shlex.quote(str(deeper))}/* {shlex.quote(str(deeper.parent))}/"


def _how_to_sort(root: Path, first: str) -> str | None:
    """What to do with an archive for each class, of which ``first`` is one, or images that are in no class folder."""
    if not (root / f"{first}.tar").is_file():
        return fix_of_layout(root)
    each = 'for tar in *.tar; do mkdir -p "${tar%.tar}" && tar -xf "$tar" -C "${tar%.tar}"; done'
    return f"unpack the archive of each class: cd {shlex.quote(str(root))} && {each}"


def find_folder(folder: Path, info: DatasetInfo, test_names: Sequence[str]) -> Found | None:
    """The dataset in ``folder/train/<class>`` and ``folder/<test name>/<class>``; None without a folder ``train``."""
    train = folder / "train"
    if not train.is_dir():
        return None
    test = next((folder / name for name in test_names if (folder / name).is_dir()), None)
    if test is None:
        raise DataMissing(
            f"{folder} has a folder train, but no folder {' or '.join(test_names)}.",
            f"add the missing split of {info.name}",
        )
    return Found(folder, "folders", *scan_splits(train, test, info))


def scan_splits(train: Path, test: Path, info: DatasetInfo) -> tuple[FolderRecords, FolderRecords]:
    """The images of both splits; raises like ``scan``, before the images of any class are listed, which takes long."""
    for root in (train, test):
        _all_class_folders(root, info)
    return FolderRecords.scan(train, info), FolderRecords.scan(test, info)
