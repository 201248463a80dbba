"""Read a set from two files, one of images and one of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rd3.synthetic_set.array_file import read_array
from rd3.synthetic_set.tensor_file import TensorFile


def read_pair(images: Path, labels: Path) -> TensorFile:
    """Images and labels from a file each, with one tensor or array: ``images_best.pt`` and ``labels_best.pt``.

    Read are files of ``torch.save``, safetensors and ``.npy``.  Raises :class:`DataMissing`, :class:`DataCorrupt` or
    :class:`BadValue`.
    """
    return TensorFile(_one(images, "images"), _one(labels, "labels"), order=None)


def _one(path: Path, what: str) -> Any:
    from rd3.inputs.torch_files import read_tensor

    return read_array(path) if path.suffix == ".npy" else read_tensor(path, what)
