"""Read a set from the NumPy arrays in a ``.npz`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rd3.errors import BadValue
from rd3.foreign_files import require_whole
from rd3.inputs import Say
from rd3.lazy import torch
from rd3.synthetic_set.tensor_file import SAVE, TensorFile, from_fields


def read_array_file(path: Path, classes: int, say: Say) -> TensorFile:
    """Images, labels and what else a ``.npz`` file states; no pickled object in it is read.

    Raises :class:`DataMissing`, :class:`DataCorrupt` or :class:`BadValue`; ``say`` and soft labels are as for
    :func:`rd3.synthetic_set.tensor_file.read_tensor_file`.
    """
    require_whole(path)
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except ValueError as error:  # arrays of objects, and damage that the archive's checksums do not show
        raise BadValue(f"{path.name} holds pickled objects or cannot be read ({error}).", SAVE) from None
    return from_fields(path.name, {name: _value(array) for name, array in arrays.items()}, {}, classes, say)


def _value(array: np.ndarray) -> Any:
    """Numbers as a tensor, others, such as names, as a list; single values as such."""
    if array.dtype.kind not in "biuf" or not array.ndim:
        return array.tolist()
    return torch.from_numpy(array)
