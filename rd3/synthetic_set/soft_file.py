"""The file of soft labels beside exported images: a row for each image, by the name of its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd3.errors import BadValue, DataCorrupt
from rd3.inputs.class_order import StatedOrder
from rd3.inputs.soft_labels import columns_in_order
from rd3.lazy import torch
from rd3.soft_labels import SoftLabels
from rd3.store import write_atomically

if TYPE_CHECKING:
    from rd3.datasets import DatasetInfo

SOFT_LABELS = "soft_labels.safetensors"
_FIX = "export the set again (rd3 set export), or move that file elsewhere to import the images alone"


def write_soft_labels(folder: Path, soft: SoftLabels, files: Sequence[str], class_ids: Sequence[str]) -> None:
    """Write ``folder/soft_labels.safetensors``: the tensor ``soft_labels`` (N, C), and in its header what they are.

    ``files``: the N images, relative to ``folder``; ``class_ids``: the classes of the columns.
    """
    from safetensors.torch import save

    header = {
        "soft_label_kind": soft.kind,
        "files": json.dumps(list(files)),
        "class_ids": json.dumps(list(class_ids)),
    }
    write_atomically(folder / SOFT_LABELS, save({"soft_labels": soft.values.contiguous()}, header))


def soft_labels_beside(
    folder: Path, files: Sequence[str], info: DatasetInfo, order: StatedOrder | None
) -> tuple[torch.Tensor | None, str | None]:
    """Soft labels of ``files`` in their order, and their kind; (None, None) for a folder without.

    Columns are brought to the dataset's class order, unless an ``order`` is stated for the numbers of the folders,
    which then is that of the columns too.  Raises :class:`DataCorrupt`, :class:`BadValue` or :class:`ClassOrderError`.
    """
    path = folder / SOFT_LABELS
    if not path.is_file():
        return None, None
    values, header = _read(path)
    if values.ndim != 2 or values.shape[1] != info.num_classes:
        raise BadValue(f"{path} has shape {tuple(values.shape)}, expected {(len(files), info.num_classes)}.", _FIX)
    rows = {name: row for row, name in enumerate(_names(header["files"], path))}
    missing = [name for name in files if name not in rows]
    if missing or len(rows) != len(files) or len(values) != len(files):
        what = f"has no row for {missing[0]}" if missing else f"has {len(values)} rows for {len(files)} images"
        raise BadValue(f"{path} {what}.", _FIX)
    brought = values[[rows[name] for name in files]]
    if order is None:
        stated = StatedOrder.read(header["class_ids"], f"{path}, field 'class_ids'")
        brought = columns_in_order(brought, stated, info)
    return brought, header["soft_label_kind"]


def _names(text: str, path: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        raise BadValue(f"{path} has a list of files that cannot be read.", _FIX) from None


def _read(path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            values = opened.get_tensor("soft_labels")
    except (SafetensorError, OSError):
        raise DataCorrupt(f"{path} is not a file of soft labels.", _FIX) from None
    if not {"soft_label_kind", "files", "class_ids"} <= header.keys():
        raise BadValue(f"{path} does not state the image of each row, their kind and their classes.", _FIX)
    return values, header
