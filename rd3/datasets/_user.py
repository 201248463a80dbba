"""Datasets registered by the user: class folders or Parquet files, recorded in ``<home>/datasets.json``."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ValidationError

from rd3.datasets._base import DatasetInfo, Roots
from rd3.datasets._cache import one_writer, replacing
from rd3.datasets._class_counts import check_classes
from rd3.datasets._decode import decode, fit_size, lost_in_rgb, planes
from rd3.datasets._folder import INNER, FolderRecords, class_folders, image_files, move_up, scan_splits
from rd3.datasets._parquet import find_parquet, shards
from rd3.datasets._records import Found, Records, counts_text
from rd3.datasets._source import SOURCES, Counts, FileSource, register_again
from rd3.datasets._splits import carve
from rd3.datasets._user_parquet import stated_classes
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing, RD3Error
from rd3.inputs.files import (
    IMAGE_SUFFIXES,
    by_number,
    first_windows_path,
    fix_of_layout,
    is_image_file,
    order_text,
    require_unbroken_links,
    sentence_on_unread,
    subfolders,
)
from rd3.inputs.names import match_names, portable_name
from rd3.inputs.notes import Note, Say, warn_of_doubts
from rd3.inputs.parquet import open_parquet
from rd3.inputs.pictures import DOUBTFUL
from rd3.inputs.pixels import eight_bit_notes
from rd3.one_level import one_level_down
from rd3.recipe import Normalisation
from rd3.values import Frozen, first_mistake

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "val", "valid")
"""Names of the folders of the two splits, in any case, by preference."""
_SPLIT = re.compile(r"(?:.*[ _-])?(?:train|training|test|testing|validation|val|valid|dev|eval)(?:[ _-].*)?")
"""Names, in lower case, of folders that are a split and not a class."""
TEST_DIVISOR = 5
"""Without a test folder, 1/5 of the smallest class's images of every class become the test split."""
MEASURED_IMAGES = 2_000
"""Number of training images, balanced over the classes, from which the normalisation is computed."""
COMPARED_FILES = 2_000
"""Number of files read to see whether test images are also among the training images."""
CHECKED_IMAGES = 20_000
"""Number of images of each part that are decoded to see whether they are whole."""
SIZED_IMAGES = 200
"""Number of images whose sizes are read."""
Resolution = Literal[32, 64, 224]
TEST_RESIZE: dict[Resolution, int] = {32: 32, 64: 64, 224: 256}
PATCH_FACTOR: dict[Resolution, int] = {32: 1, 64: 1, 224: 2}


class Registration(Frozen):
    """One entry of ``datasets.json``."""

    folder: Path
    train: str = "train"
    test: str | None
    """Subfolder with the test split beside ``train``; None: class folders only, with a test split drawn from them."""
    layout: Literal["folders", "parquet"] = "folders"
    """``parquet``: files in the Hugging Face image layout, whose names state their split."""
    info: DatasetInfo


class UserSource(FileSource):
    """A registered folder."""

    def __init__(self, registration: Registration):
        self.info = registration.info
        self.registration = registration

    def places(self, roots: Roots) -> list[Path]:
        return [self.registration.folder]

    def how_to_get(self, roots: Roots) -> str:
        return _restore(self.info)

    def look(self, folder: Path) -> Found | None:
        info, train, test = self.info, self.registration.train, self.registration.test
        if self.registration.layout == "parquet":
            return find_parquet(folder, info, TEST_NAMES)
        if test is None:
            return self._carved(folder)
        for root in (folder / train, folder / test):
            if not root.is_dir():
                if deeper := one_level_down(folder, lambda one: (one / train).is_dir() and (one / test).is_dir()):
                    message = f"{root} does not exist, but {deeper[0]} contains such a folder."
                    raise DataMissing(message, move_up(deeper[0]))
                raise DataMissing(f"{root} does not exist.", _restore(info))
        return Found(folder, "folders", *scan_splits(folder / train, folder / test, info))

    def _carved(self, folder: Path) -> Found:
        """Class folders, of which some images become the test split."""
        everything = FolderRecords.scan(folder, self.info)
        emptied = np.flatnonzero(np.bincount(everything.labels, minlength=self.info.num_classes) == 0)
        if len(emptied):
            message = f"{folder}: class {self.info.class_ids[emptied[0]]} has no images."
            raise DataCorrupt(message, f"restore {self.info.name}")
        drawn, left = carve(everything.labels, self.info.num_classes, TEST_DIVISOR, "user-test")
        return Found(folder, "folders, test split carved", everything.take(left), everything.take(drawn))

    def check_counts(self, found: Found, training_only: bool = False) -> Counts:
        whole, got = (self.info.train_count, self.info.test_count), found.counts(training_only)
        if got != whole[: len(got)]:
            raise DataCorrupt(
                f"{found.folder} holds {counts_text(got)} images; {self.info.name} was registered with "
                f"{' and '.join(map(str, whole[: len(got)]))}.",
                register_again(found, self.info, self.info.name).replace("register it", "register it again"),
            )
        return Counts(*whole, self.info.source)


def _restore(info: DatasetInfo) -> str:
    again = f"rd3 data add {info.name} --folder DIR --resolution {info.resolution}"
    return f"restore the folder or register another one: {again}"


def registry_file(roots: Roots) -> Path:
    return roots.home / "datasets.json"


def _registrations(roots: Roots) -> dict[str, Any]:
    path = registry_file(roots)
    if not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_text())
    except ValueError as error:
        raise DataCorrupt(f"{path} is not JSON ({error}).", "fix it, or remove it and register again") from error
    if not isinstance(plain, dict):
        raise DataCorrupt(f"{path} holds a {type(plain).__name__}, expected an object.", "remove it and register again")
    return plain


def user_sources(roots: Roots) -> dict[str, UserSource]:
    """Registered datasets by name."""
    try:
        return {name: UserSource(Registration.model_validate(entry)) for name, entry in _registrations(roots).items()}
    except ValidationError as error:
        raise DataCorrupt(
            f"{registry_file(roots)}, {first_mistake(error)}.", "fix it, or remove it and register again"
        ) from error


def add_folder(
    name: str, folder: Path, roots: Roots, resolution: Resolution = 224, *, say: Say = warn_of_doubts
) -> DatasetInfo:
    """Register a user's folder as a dataset; replaces an earlier registration of the same name.

    The folder holds either ``train/<class>`` and ``test/<class>`` (or training; testing, validation, val, valid; in any
    case), or class folders only, from which a balanced test split is then drawn.  Class order: alphabetical, or by
    number where all folders are numbered alike.  Or it holds Parquet files in the Hugging Face image layout, with the
    class order that they state, named ``train-*.parquet`` and ``test-*.parquet``.  Images are decoded to see whether
    they are whole, at most :data:`CHECKED_IMAGES` of each part.  ``say`` receives what was found: class order, files
    that are not read, pixel range.  Raises BadValue, ClassOrderError, DataMissing or DataCorrupt.
    """
    folder = folder.resolve()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise BadValue(f"Invalid dataset name {name!r}.", "use lower-case letters, digits, '-', '_' and '.'")
    if name in SOURCES:
        raise BadValue(f"{name!r} is a built-in dataset.", "choose another name")
    if resolution not in TEST_RESIZE:
        raise BadValue(f"Resolution {resolution} is not supported.", "use 32, 64 or 224")
    if not folder.is_dir():
        raise DataMissing(f"{folder} is not a folder.", "give a folder with one subfolder per class")
    require_unbroken_links(folder)

    def command(other: Path) -> str:
        """The command that registers another folder under this name."""
        return f"rd3 data add {name} --folder {shlex.quote(str(other))} --resolution {resolution}"

    for test in (folder / name for name in TEST_NAMES):
        if (test / "val_annotations.txt").is_file():
            raise BadValue(
                f"{test} has its labels in val_annotations.txt, not in class folders, as tiny-imagenet-200.zip has.",
                f"register the training images, from which a test split is drawn: {command(folder / 'train')}",
            )
    layout = _parquet_layout(folder, say) or _folder_layout(folder, command)
    class_ids = layout.class_ids
    info = DatasetInfo(
        name=name,
        source=f"registered folder {folder.name}" + (", test split carved out by RD3" if layout.carved else ""),
        class_ids=class_ids,
        class_names=class_ids,
        resolution=resolution,
        test_resize=TEST_RESIZE[resolution],
        factor=PATCH_FACTOR[resolution],
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),  # until measured below
        train_count=0,
        test_count=0,
        train_per_class=0,
    )
    found = UserSource(Registration(folder=folder, info=info, **layout.entry)).look(folder)
    assert found is not None
    found.train.check()
    check_classes(found, class_ids, "train", carved=layout.carved)
    with _offering_another_test_split(layout.tests):
        found.test.check()
        if not len(found.test):
            raise BadValue(f"{folder} has no test images.", "add test images of every class")
        check_classes(found, class_ids, "test", carved=layout.carved)
    for part, records in found.parts().items():
        _check_pictures(records, part, say)
    info = info.model_copy(
        update={
            "train_count": len(found.train),
            "test_count": len(found.test),
            "train_per_class": int(np.bincount(found.train.labels).min()),
            "normalisation": _measured(found.train, info, say),
        }
    )
    for note in layout.notes:
        say(note)
    copies, compared = found.test.copies_in(found.train, COMPARED_FILES)
    if copies:
        say(Note(f"{copies} of {compared} test images compared are also among the training images", doubtful=True))
    register(name, layout.entry | {"info": info.model_dump(mode="json", exclude={"classes"})}, folder, roots)
    return info


class _Layout(NamedTuple):
    """How a folder holds a dataset."""

    class_ids: tuple[str, ...]
    entry: dict[str, Any]
    """The fields of its registration but for ``folder`` and ``info``."""
    carved: bool
    """Whether the test split is drawn from the training images."""
    notes: Iterable[Note] = ()
    tests: Sequence[str] = ()
    """Splits with labels that could be the test split; the first one is it."""


@contextlib.contextmanager
def _offering_another_test_split(tests: Sequence[str]) -> Iterator[None]:
    """Name, in the fix of an error on the test split, another split that could take its place."""
    try:
        yield
    except RD3Error as error:
        if len(tests) < 2:
            raise
        fix = f"{error.fix}, or rename or remove the split {tests[0]}: then {tests[1]} is the test split"
        raise type(error)(error.message, fix) from None


def _parquet_layout(folder: Path, say: Say) -> _Layout | None:
    """None for a folder without Parquet files of splits."""
    splits = shards(folder)
    if not splits:
        return None
    tests = [name for name in TEST_NAMES if name in splits]
    notes = (
        _not_used(one, sum(open_parquet(path).metadata.num_rows for path in splits[one]), tests[0]) for one in tests[1:]
    )
    entry = {"test": None, "layout": "parquet"}
    return _Layout(stated_classes(folder, splits, say), entry, carved=False, notes=notes, tests=tests)


def _folder_layout(folder: Path, command: Callable[[Path], str]) -> _Layout:
    """``command`` gives what would register another folder."""
    train, test = _first_folder(folder, TRAIN_NAMES), _first_folder(folder, TEST_NAMES)
    if train is None:
        class_ids = _class_order(folder, command)
        return _Layout(class_ids, {"test": None}, carved=True, notes=_notes(folder, ["."], class_ids))
    if test is None:
        raise DataMissing(
            f"{folder} has a folder {train}, but no folder {' or '.join(TEST_NAMES)}.",
            f"add the test folder, or register the training images to have a test split drawn from them: "
            f"{command(folder / train)}",
        )
    class_ids = _class_order(folder / train, None)
    tests = [test, *(one for one in _unused_splits(folder, test) if len(subfolders(folder / one)) > 1)]
    with _offering_another_test_split(tests):
        _check_same_classes(_class_order(folder / test, None), class_ids, folder / train, folder / test)
    entry = {"test": test} if train == "train" else {"train": train, "test": test}
    return _Layout(class_ids, entry, carved=False, notes=_notes(folder, [train, test], class_ids), tests=tests)


class Sides(NamedTuple):
    """Shorter sides of a dataset's stored images, in pixels."""

    least: int
    median: int
    most: int

    @property
    def nearest(self) -> Resolution:
        """The resolution closest to the median size."""
        return min(TEST_RESIZE, key=lambda side: abs(math.log(side / self.median)))

    def __str__(self) -> str:
        return str(self.median) if self.least == self.most else f"{self.least} to {self.most}, median {self.median}"


def shorter_sides(name: str, roots: Roots) -> Sides:
    """Image sizes of a registered dataset, from a sample of its training images over all classes."""
    source = user_sources(roots)[name]
    records = source.find(roots).train
    chosen = np.unique(np.linspace(0, len(records) - 1, SIZED_IMAGES).astype(int))
    sides = sorted(min(decode(encoded, records.where(index)).size) for index, encoded in records.some(chosen))
    return Sides(sides[0], sides[len(sides) // 2], sides[-1])


def registration(name: str, roots: Roots) -> dict[str, Any] | None:
    """A registration without its folder, portable to other machines; None if the name is not registered."""
    entry = _registrations(roots).get(name)
    return {field: value for field, value in entry.items() if field != "folder"} if entry else None


def register(name: str, entry: dict[str, Any], folder: Path, roots: Roots) -> None:
    """Register the ``entry`` of another machine (see :func:`registration`) for a copy in ``folder``."""
    path = registry_file(roots)
    with one_writer(path), replacing(path) as part:
        entries = _registrations(roots) | {name: {"folder": str(folder), **entry}}
        part.write_text(json.dumps(entries, indent=1) + "\n")


def _notes(folder: Path, roots: Sequence[str], class_ids: Sequence[str]) -> Iterator[Note]:
    """On the class order and on what is not read; ``roots``: the training and the test folder, or where both are."""
    yield Note(order_text(class_ids))
    places = [f"{root}/{name}" for root in roots for name in class_folders(folder / root, class_ids).values()]
    unused = _unused_splits(folder, roots[1]) if len(roots) > 1 else []
    for one in unused:
        count = sum(is_image_file(path.name) for path in (folder / one).rglob("*"))
        yield _not_used(one, count, roots[1])
    left = sentence_on_unread(folder, [f"{place}/{inner}" for place in places for inner in INNER], unused)
    if left:
        yield Note(left, doubtful=True)


def _not_used(split: str, count: int, test: str) -> Note:
    return Note(f"{split} ({count} images) is not used: {test} is the test split")


def _class_order(root: Path, command: Callable[[Path], str] | None) -> tuple[str, ...]:
    """Names of the classes that have a folder, in the order of :func:`by_number`.

    ``command`` gives what would register another folder; None if ``root`` is one split of what is registered.
    """
    require_unbroken_links(root)
    found = subfolders(root)
    if len(found) < 2:
        raise _no_classes(root, found, command)
    classes = by_number({portable_name(one) for one in found})
    if len(classes) < len(found):
        [(twice, _count)] = Counter(map(portable_name, found)).most_common(1)
        spelled = " and ".join(repr(one) for one in found if portable_name(one) == twice)
        raise BadValue(
            f"{root} has class folders whose names differ in spaces or in how characters are composed: {spelled}.",
            "move their images into one folder, or rename one",
        )
    for one in found if command else ():  # images of a split are counted later, for both parts together
        if not any(image_files(place, "", 0) for inner in INNER if (place := root / one / inner).is_dir()):
            assert command is not None
            raise _no_images(root, one, found, command)
    return tuple(classes)


def _no_images(root: Path, empty: str, found: Sequence[str], command: Callable[[Path], str]) -> BadValue:
    """The error for a class folder without images, which may be a split or hold the classes."""
    if _are_splits(found):
        return BadValue(
            f"{root} has the folders {', '.join(found[:4])}, which look like splits and not like classes.",
            f"name them train and test, each with one folder per class, or register one: {command(root / found[0])}",
        )
    below = subfolders(root / empty)
    if len(below) > 1:
        return BadValue(
            f"{root / empty} holds no image, but the folders {', '.join(below[:3])}{', ...' if below[3:] else ''}.",
            f"if these are the classes, register it: {command(root / empty)}",
        )
    left = sentence_on_unread(root / empty, list(INNER))
    return BadValue(
        f"{root / empty} holds no image{f'; {left}' if left else ''}.",
        f"remove it or add images of that class, as files ending in {', '.join(IMAGE_SUFFIXES)}",
    )


def _no_classes(root: Path, found: Sequence[str], command: Callable[[Path], str] | None) -> BadValue:
    """The error for a folder with fewer than two class folders, which may lie one level too high or too low."""
    inner = root
    while len(below := subfolders(inner)) == 1:
        inner = inner / below[0]
    if inner != root and below:
        fact = f"The class folders of {root} are a level deeper, in {inner}."
        return BadValue(fact, f"register that: {command(inner)}" if command else f"move what is in {inner} to {root}")
    fact = f"{root} has {len(found)} class folders, expected 2 or more"
    beside: list[str] = []
    with contextlib.suppress(BadValue, OSError):  # what lies there is not the user's concern
        beside = subfolders(root.parent)
    fix = fix_of_layout(root) or "create one subfolder per class"
    images = image_files(root, "", 0) and not first_windows_path(root)
    if command and images and len(beside) > 1 and not _are_splits(beside):
        above = f"{fix}, or, if it is one class of several, register the folder above: {command(root.parent)}"
        return BadValue(f"{fact}; it holds images itself.", above)
    left = sentence_on_unread(root, [])
    return BadValue(f"{fact}{f'; {left}' if left else ''}.", fix)


def _are_splits(names: Sequence[str]) -> bool:
    """Whether folders of these names look like splits and not like classes."""
    return all(_SPLIT.fullmatch(name.lower()) for name in names)


def _unused_splits(folder: Path, test: str) -> list[str]:
    """Other folders that could be the test split."""
    return [one for one in subfolders(folder) if one != test and one.lower() in TEST_NAMES]


def _check_same_classes(found: Sequence[str], class_ids: Sequence[str], train: Path, test: Path) -> None:
    """Raise :class:`ClassOrderError` unless these are the class folders of the training images, in any order."""
    same = match_names(found, class_ids)
    more = [one for one in found if one not in same]
    missing = [name for label, name in enumerate(class_ids) if label not in same.values()]
    if more or missing:
        facts = [f"has the class folder {more[0]!r}, which train does not have"] if more else []
        facts += [f"has no class folder {missing[0]!r}, which train has"] if missing else []
        if more and missing:
            fix = f"rename {test / more[0]} to {missing[0]}, if they are one class; otherwise remove both folders"
        else:
            there, lacking = (test / more[0], train / more[0]) if more else (train / missing[0], test / missing[0])
            fix = f"move some images of {there} to {lacking}, or remove {there}"
            if not any(there.iterdir()):
                fix = f"remove {there}, which is empty, or put images into it and into {lacking}"
        raise ClassOrderError(f"{test} {' and '.join(facts)}.", fix)


def _first_folder(folder: Path, names: Sequence[str]) -> str | None:
    """The first of these folders that is there, in the case in which it is written."""
    there = subfolders(folder)
    written = (one for name in names for one in sorted(there, key=name.__ne__) if one.lower() == name)
    return next(written, None)


def _check_pictures(records: Records, part: str, say: Say) -> None:
    """Raise for an image that cannot be decoded, of at most :data:`CHECKED_IMAGES` that are evenly spaced."""
    chosen = np.unique(np.linspace(0, len(records) - 1, min(len(records), CHECKED_IMAGES)).astype(int))
    for index, encoded in records.some(chosen):
        decode(encoded, records.where(index))
    if len(chosen) < len(records):
        say(Note(f"{part}: {len(chosen)} of {len(records)} images were decoded, the others will be when they are used"))


def _measured(records: Records, info: DatasetInfo, say: Say) -> Normalisation:
    """Mean and standard deviation of every channel over a balanced sample of the training images, to 4 decimals.

    Raises :class:`BadValue` for images that are black or have lost their scale.
    """
    divisor = max(1, info.num_classes * int(np.bincount(records.labels).min()) // MEASURED_IMAGES)
    chosen, _rest = carve(records.labels, info.num_classes, divisor, "measure")
    sums, squares = np.zeros(3), np.zeros(3)
    low, high, dropped = 255, 0, Counter[str]()
    for index, encoded in records.some(chosen):
        image = decode(encoded, records.where(index))
        stored = np.asarray(image)
        low, high = min(low, int(stored.min())), max(high, int(stored.max()))
        dropped.update(lost_in_rgb(encoded))
        image = fit_size(image, info.test_resize, info.resolution)
        values = planes(image).reshape(3, -1).astype(np.float64) / 255
        sums, squares = sums + values.mean(axis=1), squares + (values**2).mean(axis=1)
    read = f"{len(chosen)} of {len(records)}" if len(chosen) < len(records) else str(len(chosen))
    for note in eight_bit_notes(low, high, f"pixels of {read} training images"):
        say(note)
    for what, count in dropped.items():
        say(Note(f"{count} of {len(chosen)} training images have {what}", doubtful=what in DOUBTFUL))
    mean = sums / len(chosen)
    # Avoids division by zero for constant channels.
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 1e-4))
    return Normalisation.model_validate(
        {"mean": [round(value, 4) for value in mean.tolist()], "std": [round(value, 4) for value in std.tolist()]}
    )
