"""Sources of datasets: the folders searched, the counts accepted, and how a dataset is opened."""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rd3.datasets._base import Dataset, DatasetInfo, Roots
from rd3.datasets._cache import cache_file, replacing
from rd3.datasets._folder import find_folder, move_up
from rd3.datasets._memory import open_in_memory
from rd3.datasets._parquet import find_parquet, shards
from rd3.datasets._records import Found, counts_text, info_with_counts
from rd3.datasets._splits import TrainingOnly
from rd3.datasets._stream import open_stream
from rd3.errors import DataCorrupt, DataMissing
from rd3.one_level import one_level_down
from rd3.registry import Registry

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
MEMORY_SIDE = 64
"""Datasets up to this many pixels per side are held decoded in memory; larger ones are streamed."""


class Counts(NamedTuple):
    """Numbers of images of a complete copy, and the description of that copy."""

    train: int
    test: int
    source: str


class Copy(NamedTuple):
    """A copy of a dataset that was found and checked, without decoding images."""

    folder: Path | None
    """None: the data come with a package."""
    layout: str
    info: DatasetInfo
    """Description with the counts that were found."""


def register_again(found: Found, info: DatasetInfo, name: str) -> str:
    """Instruction to register what was found as a dataset ``name`` of the same resolution."""
    as_it_is = found.layout == "parquet" or found.layout.startswith("folders")
    return (
        f"{'register it' if as_it_is else 'save its images as class folders and register these'}: rd3 data add {name} "
        f"--folder {shlex.quote(str(found.folder)) if as_it_is else 'DIR'} --resolution {info.resolution}"
    )


def packed(folder: Path, names: Sequence[str]) -> list[Path]:
    """Archives in a folder that begin with one of these names, apart from case, hyphens and underscores."""
    begins = "|".join(re.escape(re.sub(r"[-_]", "", Path(name).name.lower())) for name in names)
    archive = re.compile(rf"(?:{begins})(?!(?<=\d)\d).*\.(?:zip|tgz|tar(?:\.\w+)?)")  # cifar100 is not cifar10
    return [path for path in sorted(folder.glob("*")) if archive.fullmatch(re.sub(r"[-_]", "", path.name.lower()))]


class Source(ABC):
    """One dataset before it is opened; the base class of new datasets.

    ``info`` may be a class attribute.  ``obtain`` tells users how to get data that RD3 cannot fetch; ``{folder}`` in it
    is replaced by the target folder.
    """

    info: DatasetInfo
    obtain: str = "put it into {folder}"
    fetches: bool = False
    """Whether ``fetch`` can download the dataset."""

    def places(self, roots: Roots) -> list[Path]:
        """Folders to search, in order."""
        return []

    @abstractmethod
    def survey(self, roots: Roots) -> Copy:
        """Find and check a copy without decoding images; raises like ``open``."""

    @abstractmethod
    def open(self, roots: Roots) -> Dataset:
        """Open the dataset; raises DataMissing, DataCorrupt or ClassOrderError."""

    def open_training(self, roots: Roots) -> Dataset:
        """Open the dataset without its test split, with a fingerprint of the rest; raises like ``open``."""
        return TrainingOnly(self.open(roots))

    @abstractmethod
    def stamp(self, roots: Roots, training_only: bool = False) -> list[str]:
        """Names, sizes and times of the files on disk; equal stamps mean equal data."""

    def fingerprint(self, roots: Roots, training_only: bool = False) -> str:
        """The fingerprint of the data on disk, cached while the files keep their stamp.

        For planning; opening the dataset checks the content itself.
        """
        which = ["training only"] if training_only else []
        stamp = self.stamp(roots, training_only)
        sizes = f"{self.info.resolution} {self.info.test_resize}"
        lines = [self.info.name, self.info.classes, sizes, *which, *stamp]
        path = cache_file(roots.home, self.info.name, lines, ".fingerprint")
        known = path.read_text(errors="replace") if path.is_file() else ""
        if _FINGERPRINT.fullmatch(known):
            return known
        fingerprint = (self.open_training if training_only else self.open)(roots).fingerprint
        with replacing(path) as part:
            part.write_text(fingerprint)
        return fingerprint

    def fetch(self, folder: Path) -> None:
        """Download the dataset into ``folder``, an empty folder."""
        raise NotImplementedError

    def how_to_get(self, roots: Roots) -> str:
        """Instruction to obtain a missing dataset."""
        if self.fetches:
            return f"rd3 data fetch {self.info.name}"
        return self.obtain.format(folder=(roots.data or roots.home / "data") / self.info.name)


SOURCES: Registry[type[Source]] = Registry("dataset", "rd3.datasets")


def register_dataset(name: str) -> Callable[[type[Source]], type[Source]]:
    """Decorator: register a source under a name, which must equal its ``info.name``."""
    return SOURCES.register(name)


class FileSource(Source):
    """A dataset in files: Parquet, class folders or the layout of an official archive."""

    folders: Sequence[str] = ()
    """Further folder names of an official archive below a root, besides the name of the dataset."""
    test_names: Sequence[str] = ("test",)
    """Names of the files or folders with the test split."""
    accepts: Sequence[Counts] = ()
    """Counts of further complete copies, besides those of ``info``."""

    def complete(self) -> list[Counts]:
        """Counts of all copies that are accepted as this dataset."""
        return [Counts(self.info.train_count, self.info.test_count, self.info.source), *self.accepts]

    def places(self, roots: Roots) -> list[Path]:
        bases = [base for base in (roots.data, roots.home / "data") if base is not None]
        return [base / name for base in bases for name in (self.info.name, *self.folders)]

    def look(self, folder: Path) -> Found | None:
        """Search one folder for the dataset; None if it has no part of it."""
        names = self.test_names
        return find_parquet(folder, self.info, names) or find_folder(folder, self.info, names)

    def find(self, roots: Roots, training_only: bool = False) -> Found:
        """The first copy found, with checked counts; with ``training_only`` no test file is opened."""
        places = self.places(roots)
        for folder in filter(Path.is_dir, places):
            if found := self.look(folder):
                counts = self.check_counts(found, training_only)
                return replace(found, source=found.source or counts.source)
        raise self._missing(roots, places)

    def _missing(self, roots: Roots, places: Sequence[Path]) -> DataMissing:
        """That no folder has the dataset; an archive that is not unpacked and a folder of something else are named."""
        searched = f"Dataset {self.info.name} not found in {', '.join(map(str, places))}"
        bases = [base for base in (roots.data, roots.home / "data") if base is not None]
        for archive in (file for base in [*bases, *places] for file in packed(base, (self.info.name, *self.folders))):
            folder, file = shlex.quote(str(archive.parent)), shlex.quote(str(archive))
            command = f"unzip {file} -d {folder}" if archive.suffix.lower() == ".zip" else f"tar -xf {file} -C {folder}"
            return DataMissing(f"{searched}; {archive} is not unpacked.", f"unpack it: {command}")
        if deeper := self._one_level_down(roots, places):
            return DataMissing(f"{searched}, but it is one level deeper, in {deeper[0]}.", deeper[1])
        place = next(filter(Path.is_dir, places), None)
        if place is not None:
            names = sorted(path.name for path in place.glob("*"))
            holds = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "nothing"
            searched += f"; {place} holds {holds}, which is not a known layout of it"
        return DataMissing(f"{searched}.", self.how_to_get(roots))

    def _one_level_down(self, roots: Roots, places: Sequence[Path]) -> tuple[Path, str] | None:
        """A folder with this dataset that is one level deeper than those searched, and what to do; None without one."""
        for place in filter(Path.is_dir, places):
            if found := one_level_down(place, self._seems_to_be):
                return found[0], move_up(found[0])

        def not_searched(data: Path) -> list[Path]:
            """Folders that would be searched as well if ``data`` were the folder of datasets."""
            return [one for one in self.places(replace(roots, data=data)) if one not in places and one.is_dir()]

        if roots.data is not None and (found := one_level_down(roots.data, lambda one: bool(not_searched(one)))):
            return not_searched(found[0])[0], f"export RD3_DATA={shlex.quote(str(found[0]))}"
        return None

    def _seems_to_be(self, folder: Path) -> bool:
        """Whether a folder has the first class's folder, Parquet files or an archive's folder; opens no file."""
        named = [*self.folders, f"train/{self.info.class_ids[0]}"]
        return any((folder / name).is_dir() for name in named) or bool(shards(folder))

    def check_counts(self, found: Found, training_only: bool = False) -> Counts:
        """Raise for a subset in place of the complete dataset, the reverse, or an incomplete copy."""
        got, name = found.counts(training_only), self.info.name
        for counts in self.complete():
            if got == counts[: len(got)]:
                return counts
        for other in (SOURCES.get(known)() for known in SOURCES):
            related = other.info.parent == name or other.info.name == self.info.parent
            if related and isinstance(other, FileSource) and got in [counts[: len(got)] for counts in other.complete()]:
                raise DataCorrupt(
                    f"{found.folder} holds {other.info.name} ({counts_text(got)} images), not {name}.",
                    f"use dataset {other.info.name} or replace the files with {name}",
                )
        wanted = " or ".join(" and ".join(map(str, counts[: len(got)])) for counts in self.complete())
        raise DataCorrupt(
            f"{found.folder} holds {counts_text(got)} images; {name} has {wanted}.",
            f"complete it, or {register_again(found, self.info, 'NAME')}",
        )

    def survey(self, roots: Roots) -> Copy:
        found = self.find(roots)
        labels = {part: records.labels for part, records in found.parts().items()}
        return Copy(found.folder, found.layout, info_with_counts(self.info, found, labels))

    def stamp(self, roots: Roots, training_only: bool = False) -> list[str]:
        return self.find(roots, training_only).stamp(training_only)

    def open(self, roots: Roots) -> Dataset:
        return self._opened(roots, training_only=False)

    def open_training(self, roots: Roots) -> Dataset:
        return self._opened(roots, training_only=True)

    def _opened(self, roots: Roots, training_only: bool) -> Dataset:
        found = self.find(roots, training_only)
        opener = open_in_memory if self.info.resolution <= MEMORY_SIDE else open_stream
        return opener(self.info, found, roots.home, training_only)
