"""Folders of images: which files are read, which are not, and the order of numbered classes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from rd3.errors import BadValue, DataMissing
from rd3.values import is_utf8

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
"""Suffixes of the image files that are read, everywhere."""
_LITTER = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "icon\r")
"""What file managers and file systems leave behind, in lower case; hidden files aside."""
_CONTAINERS = {
    ".arrow": "Arrow files, as save_to_disk of Hugging Face's datasets writes them",
    ".parquet": "Parquet files",
    ".tar": "tar files, as WebDataset has them",
    ".tfrecord": "TFRecord files",
    ".h5": "HDF5 files",
    ".hdf5": "HDF5 files",
    ".mdb": "an LMDB database",
    ".npz": "NumPy arrays",
    ".npy": "NumPy arrays",
    ".mat": "MATLAB files",
    ".zip": "ZIP archives",
    ".gz": "compressed archives",
}
"""Files that hold many images, by suffix."""
_LISTS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx")
_LABELS = re.compile("label|class|train|target|annotation|list")
"""Words in the names of files that may list the class of each image."""
_NUMBERED = re.compile(r"(\D*)(\d+)(\D*)")


def is_image_file(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that a file manager left behind."""
    return name.startswith(".") or name.lower() in _LITTER


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones and those of file managers aside.

    Raises :class:`BadValue` for a name that is not UTF-8, as it could be neither stored nor shown.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))
    for name in names:
        if not is_utf8(name):
            shown = os.fsencode(name).decode(errors="replace")
            raise BadValue(
                f"The name of the folder {folder}/{shown} is not UTF-8.", "rename it, for example with convmv"
            )
    return names


def require_regular(path: str | Path, found: os.stat_result) -> None:
    """Raise :class:`BadValue` for a pipe, socket or device, which could be read without end."""
    if not stat.S_ISREG(found.st_mode):
        raise BadValue(f"{path} is not a regular file but a pipe, socket or device.", "remove it")


def require_unbroken_links(folder: Path) -> None:
    """Raise :class:`DataMissing` if a link in a folder of classes leads nowhere, since it may have been a class."""
    links = sorted(path for path in folder.iterdir() if path.is_symlink() and not is_litter(path.name))
    lost = list(itertools.filterfalse(os.path.exists, links))  # or without permission to look
    if lost:
        raise DataMissing(
            f"{lost[0]} is a link to {lost[0].readlink()}, which is missing or cannot be read.",
            "restore what it leads to, or remove the link",
        )


def fix_of_layout(folder: Path) -> str | None:
    """What to do with a folder without class folders that holds images otherwise; None if it holds none.

    Known are files that hold many images, names that are paths of Windows, and image files with a list of their labels
    beside or above them.
    """
    if path := first_windows_path(folder):
        return f"unpack the archive again with `unzip`, which makes folders of {path}, a path with Windows's separators"
    files = sorted(path for path in folder.iterdir() if path.is_file() and not is_litter(path.name))
    images = any(is_image_file(path.name) for path in files)
    held = [path for path in files if path.suffix.lower() in _CONTAINERS]
    if held and not (images and all(_LABELS.search(path.stem.lower()) for path in held)):
        return f"save each image as <class>/<number>.png; they are in {_CONTAINERS[held[0].suffix.lower()]}"
    if not images:
        return None
    with contextlib.suppress(OSError):  # the folder above may not be readable
        files += sorted(path for path in folder.parent.iterdir() if path.is_file() and not is_litter(path.name))
    lists = [
        path for path in files if path.suffix.lower() in (*_LISTS, *_CONTAINERS) and _LABELS.search(path.stem.lower())
    ]
    listed = min(lists, key=lambda path: "label" not in path.stem.lower(), default=None)
    fix = "move every image into a folder that is named by its class"
    return f"{fix}; {listed} may say which that is" if listed else fix


def first_windows_path(folder: Path) -> str | None:
    r"""The first name in a folder that is a path of Windows, such as ``train\cat\0.png``; None without any."""
    return min((path.name for path in folder.iterdir() if "\\" in path.name), default=None)


def by_number(names: Iterable[str]) -> list[str]:
    """Names sorted by their number where all are numbered alike (``0`` or ``class_0``), else alphabetically."""
    alphabetical = sorted(names)
    parts = {name: match.groups() for name in alphabetical if (match := _NUMBERED.fullmatch(name))}
    if any(name not in parts for name in alphabetical) or len({(part[0], part[2]) for part in parts.values()}) > 1:
        return alphabetical
    return sorted(alphabetical, key=lambda name: (int(parts[name][1]), name))


def shortened(names: Sequence[str]) -> str:
    """At most twelve names, with the last one, as text."""
    return ", ".join([*names[:11], "...", names[-1]] if len(names) > 12 else names)


def order_text(names: Sequence[str]) -> str:
    """A sentence on the class order that :func:`by_number` gives."""
    numbered = list(names) != sorted(names)  # 0, 1, 2, 10 is 0, 1, 10, 2 alphabetically
    how = "by number; alphabetically, as torchvision's ImageFolder, it would differ" if numbered else "alphabetical"
    return f"class order ({how}): {shortened(names)}"


def sentence_on_unread(root: Path, image_folders: Sequence[str], read: Collection[str] = ()) -> str | None:
    """A sentence on the files below ``root`` that are not read, hidden ones and file managers' aside; None if all are.

    ``image_folders``: those, relative to ``root``, whose image files are read; ``read``: other files and folders in
    ``root`` that are not counted.
    """
    reasons = Counter(_reasons(root, {os.path.normpath(one) for one in image_folders}, read))
    if not reasons:
        return None
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    total = sum(reasons.values())
    return f"{total} file{'s' if total > 1 else ''} below {root} {'are' if total > 1 else 'is'} not read: {listed}"


def _reasons(root: Path, image_folders: set[str], read: Collection[str]) -> Iterator[str]:
    seen = {os.path.realpath(root)}  # a link may lead back
    for folder, folders, files in os.walk(root, followlinks=True):
        skipped = read if Path(folder) == root else ()
        folders[:] = [name for name in folders if not is_litter(name) and name not in skipped]
        targets = {name: os.path.realpath(Path(folder, name)) for name in folders}
        unseen = (name for name in folders if targets[name] not in seen)
        folders[:] = [name for name in unseen if _belongs(root, folder, name, image_folders)]
        seen.update(targets.values())
        within = os.path.relpath(folder, root) in image_folders
        for name in files:
            if is_litter(name) or name in skipped:
                continue
            suffix = Path(name).suffix.lower() or "without a suffix"
            if not is_image_file(name):
                yield suffix
            elif not within:
                yield f"{suffix} outside the class folders"


def _belongs(root: Path, folder: str, name: str, image_folders: set[str]) -> bool:
    """False for a symbolic link in ``folder`` unless one of ``image_folders`` is this link or lies below it."""
    within = os.path.relpath(Path(folder, name), root)
    return not Path(folder, name).is_symlink() or any(f"{one}/".startswith(f"{within}/") for one in image_folders)
