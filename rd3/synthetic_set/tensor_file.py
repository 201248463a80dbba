"""Read a file of images and labels, and everything else that it states about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rd3.errors import BadValue
from rd3.foreign_files import require_whole
from rd3.inputs import Note, Say, StatedOrder

SUFFIXES = (".safetensors", ".pt", ".pth")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SAVE = "save {'images': ..., 'labels': ...} as .safetensors (safetensors.torch.save_file) or .pt (torch.save)"
_SOFT = re.compile(r"soft|logit|prob|teacher|relabel|label_?syn|fkd")
_ORDER = re.compile(r"class|wnid|synset|categor|label_?names|^names$|label2id|id2label")


class TensorFile(NamedTuple):
    """What a file holds."""

    images: Any
    labels: Any
    order: StatedOrder | None
    """The class order that it states."""


def read_tensor_file(path: Path, classes: int, say: Say) -> TensorFile:
    """Images, labels and the stated class order of a ``.safetensors`` or ``.pt`` file; no code in it is executed.

    Raises :class:`DataMissing`, :class:`DataCorrupt`, or :class:`BadValue` for soft labels of ``classes`` classes
    beside the hard ones, which are not dropped silently.  ``say`` receives the names of what is not read.
    """
    from rd3.inputs.torch_files import is_foreign, read_torch_file

    if path.suffix not in SUFFIXES:
        require_whole(path)
        fix = "unpack it and import the folder or file in it" if path.suffix in _ARCHIVES else SAVE
        raise BadValue(f"{path.name} ends in {path.suffix!r}, expected .safetensors or .pt.", fix)
    found = read_torch_file(path, "a file of images and labels", SAVE)
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    if not isinstance(found, Mapping):
        raise BadValue(
            f"{path.name} holds a {type(found).__name__} of {len(found)}, expected 'images' and 'labels'.", SAVE
        )
    if "images" not in found or "labels" not in found:
        names = ", ".join(sorted(map(str, found))[:5]) or "nothing"
        raise BadValue(f"{path.name} holds {names}, expected tensors 'images' and 'labels'.", SAVE)
    for name in ("images", "labels"):
        if is_foreign(found[name]):
            raise BadValue(f"{name!r} in {path.name} is a pickled {type(found[name]).__name__}, not a tensor.", SAVE)
    beside = {str(name): value for name, value in found.items() if name not in ("images", "labels")}
    others = beside | _header(path)
    _refuse_soft(others, classes, path.name)
    order = _order(others, path.name)
    left = sorted(name for name in others if order is None or order.where != _field(path.name, name))
    if left:
        say(Note(f"not read from {path.name}: {', '.join(left)}", doubtful=True))
    return TensorFile(found["images"], found["labels"], order)


def _header(path: Path) -> dict[str, Any]:
    """The text fields in the header of a safetensors file."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as opened:
        return {name: value for name, value in (opened.metadata() or {}).items() if name != "format"}


def _refuse_soft(others: Mapping[str, Any], classes: int, file: str) -> None:
    """Raise for soft labels beside the hard ones."""
    for name, value in others.items():
        shape = tuple(getattr(value, "shape", ()))
        named = _SOFT.search(name.lower()) and (shape or isinstance(value, (list, tuple, Mapping)))
        if named or (len(shape) >= 2 and shape[-1] == classes and value.dtype.is_floating_point):
            raise BadValue(
                f"{file} holds {name!r} beside its labels{f' (shape {shape})' if shape else ''}, which looks like soft "
                "labels; RD3 does not evaluate these.",
                "to import the images with their hard labels alone, save only 'images' and 'labels'; soft labels are "
                "computed by the teachers of the evaluation",
            )


def _field(file: str, name: str) -> str:
    return f"{file}, field {name!r}"


def _order(others: Mapping[str, Any], file: str) -> StatedOrder | None:
    """The class order that a field states; a plain number is one of classes, not an order."""
    for name, value in others.items():
        number = isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0 or str(value).isdecimal()
        if _ORDER.search(name.lower()) and not number:
            return StatedOrder.read(value, _field(file, name))
    return None
