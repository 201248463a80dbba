"""Read a set from the NumPy arrays in a ``.npz`` file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from rd3.errors import BadValue, DataCorrupt
from rd3.foreign_files import AGAIN, require_whole
from rd3.inputs.notes import Note, Say
from rd3.lazy import torch
from rd3.synthetic_set.tensor_file import HOW_TO_SAVE, ForeignSet, set_of_fields


def read_array_file(path: Path, classes: int, say: Say) -> ForeignSet:
    """Images, labels and what else a ``.npz`` file states; no pickled object in it is read.

    Raises :class:`DataMissing`, :class:`DataCorrupt` or :class:`BadValue`; ``say`` and soft labels are as for
    :func:`rd3.synthetic_set.tensor_file.read_tensor_file`.
    """
    require_whole(path)
    fields: dict[str, Any] = {}
    pickled: list[str] = []
    opened = _opened(path)
    if isinstance(opened, np.ndarray):
        raise BadValue(f"{path.name} holds one array, expected 'images' and 'labels'.", HOW_TO_SAVE)
    with opened:
        for name in opened.files:
            try:
                fields[name] = _value(opened[name])
            except ValueError:  # an array of objects
                pickled.append(name)
            # A damaged header, or an archive in which every checksum fails, which torch can be set to write.
            except (zipfile.BadZipFile, TokenError) as error:
                raise DataCorrupt(f"{path.name} is damaged ({error}).", AGAIN) from None
    if pickled:
        say(Note(f"not read from {path.name}, as they are pickled objects: {', '.join(pickled)}", doubtful=True))
    return set_of_fields(path.name, fields, {}, classes, say)


def read_array(path: Path) -> np.ndarray:
    """Load the array of a ``.npy`` file; pickled objects are refused."""
    require_whole(path)
    found = _opened(path)
    if not isinstance(found, np.ndarray):
        with found:
            names = ", ".join(found.files[:5]) or "nothing"
        raise BadValue(f"{path.name} is an archive of {names}, expected one array.", HOW_TO_SAVE)
    return found


def _opened(path: Path) -> np.ndarray | NpzFile:
    """The array or the archive in a file, whatever its suffix; pickled objects and other formats are refused."""
    try:
        opened: np.ndarray | NpzFile = np.load(path, allow_pickle=False)
    except ValueError:  # whose text advises to unpickle the file
        raise BadValue(f"{path.name} holds no plain array.", HOW_TO_SAVE) from None
    return opened


def _value(array: np.ndarray | bytes) -> Any:
    """Numbers as a tensor, others, such as names, as a list; single values as such, and files that are no arrays."""
    if isinstance(array, bytes):
        return array
    if array.dtype.kind not in "biuf" or not array.ndim or (array.dtype.kind == "f" and array.itemsize > 8):
        return array.tolist()
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
