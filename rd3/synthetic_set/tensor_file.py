"""Read a file of images and labels, and everything else that it states about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rd3.errors import BadValue
from rd3.foreign_files import require_whole
from rd3.inputs.class_order import StatedOrder
from rd3.inputs.notes import Note, Say

SUFFIXES = (".safetensors", ".pt", ".pth")
IMAGES = ("images", "image", "imgs", "img", "x", "image_syn", "images_syn", "syn_images")
LABELS = ("labels", "label", "y", "targets", "target", "label_syn", "labels_syn", "syn_labels")
"""Names of the fields with images and labels, by preference."""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
"""How files of ``torch.save`` begin: a zip archive, or the magic number before torch 1.6."""
HOW_TO_SAVE = "save {'images': ..., 'labels': ...} as .safetensors (safetensors.torch.save_file) or .pt (torch.save)"
SOFT_NAMES = re.compile(r"soft|logit|prob(?!lem)|teacher|relabel|label_?syn|fkd")
"""Names of fields that may hold soft labels."""
SOFT_LABEL_KIND = "soft_label_kind"
"""The field that says what soft labels are: ``logits`` or ``probabilities``."""
_ORDER = re.compile(r"class|wnid|synset|categor|label_?names|^names$|label2id|id2label")
"""Names of fields that may state which class a label is."""


class ForeignSet(NamedTuple):
    """A set as its files have it, before any check."""

    images: Any
    labels: Any
    order: StatedOrder | None = None
    """The class order that is stated."""
    soft_labels: Any = None
    """(N, C) soft labels beside the classes, if there are any."""
    soft_label_kind: Any = None
    """What they are, if this is stated."""


def _saved_by_torch(path: Path) -> bool:
    """Whether a file of ``torch.save`` is called an archive, as ``data.pth.tar`` or a ``batch_0.tar`` of FKD."""
    if path.suffix != ".tar" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_TORCH[1])).startswith(_TORCH)


def read_tensor_file(path: Path, classes: int, say: Say, number: int | None = None) -> ForeignSet:
    """Images, labels and what else a ``.safetensors`` or ``.pt`` file states; no code in it is executed.

    ``number``: which set, from 0, of a file with several under ``data``, as dataset condensation saves one for each of
    its repetitions.  Raises :class:`DataMissing`, :class:`DataCorrupt`, or :class:`BadValue` for soft labels that are
    not one row of ``classes`` numbers for each image, which are not dropped silently.  ``say`` receives the names of
    what is not read.
    """
    from rd3.inputs.torch_files import read_torch_file

    if path.suffix not in SUFFIXES and not _saved_by_torch(path):
        require_whole(path)
        fix = "unpack it and import the folder or file in it" if path.suffix in _ARCHIVES else HOW_TO_SAVE
        raise BadValue(f"{path.name} ends in {path.suffix!r}, expected .safetensors, .pt, .npz or .parquet.", fix)
    fix = f"{HOW_TO_SAVE}; labels in a file of their own are given with --labels FILE"
    found = read_torch_file(path, "a file of images and labels", fix)
    if isinstance(found, Mapping) and (several := _sets_under_data(found)):
        beside = {name: value for name, value in found.items() if name != "data"}
        found = beside | _chosen_set(several, number, path.name)
    elif number is not None:
        raise BadValue(f"{path.name} holds one set, got number {number}.", "leave out --number")
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = {"images": found[0], "labels": found[1]}
    if not isinstance(found, Mapping):
        raise BadValue(
            f"{path.name} holds a {type(found).__name__} of {len(found)}, expected 'images' and 'labels'.", HOW_TO_SAVE
        )
    return set_of_fields(path.name, {str(name): value for name, value in found.items()}, _header(path), classes, say)


def set_of_fields(file: str, fields: Mapping[str, Any], notes: Mapping[str, Any], classes: int, say: Say) -> ForeignSet:
    """The set in the fields of a file: images and labels by the names in common use, the rest as :func:`foreign_set`.

    ``notes``: text beside the fields, which replaces none of them.
    """
    from rd3.inputs.torch_files import UnreadObject

    images, labels = _field_of(fields, IMAGES), _field_of(fields, LABELS)
    if images is None or labels is None:
        found = ", ".join(sorted(fields)[:5]) or "nothing"
        raise BadValue(f"{file} holds {found}, expected tensors 'images' and 'labels'.", HOW_TO_SAVE)
    for what, name in (("images", images), ("labels", labels)):
        if isinstance(fields[name], UnreadObject):
            raise BadValue(f"{name!r} in {file} is a pickled {type(fields[name]).__name__}, not a tensor.", HOW_TO_SAVE)
        if name != what:
            say(Note(f"{what} are read from {_field(file, name)}"))
    beside = {name: value for name, value in fields.items() if name not in (images, labels)}
    others = {name: note for name, note in notes.items() if name not in fields}
    return foreign_set(file, fields[images], fields[labels], others | beside, classes, say)


def _field_of(fields: Mapping[Any, Any], accepted: tuple[str, ...]) -> Any:
    """The field with the first of these names, in any case; None if there is none.  Fields may be numbers."""
    return next((name for one in accepted for name in fields if str(name).lower() == one), None)


def _sets_under_data(fields: Mapping[Any, Any]) -> list[Any]:
    """The (images, labels) pairs under ``data``, as VICO-UoE/DatasetCondensation saves them; else empty."""
    pairs = None if _field_of(fields, IMAGES) else fields.get("data")
    if not isinstance(pairs, (list, tuple)) or not pairs:
        return []
    return list(pairs) if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs) else []


def _chosen_set(pairs: list[Any], number: int | None, file: str) -> dict[str, Any]:
    """One of several sets; raises :class:`BadValue` if ``number`` does not say which."""
    if number is None and len(pairs) > 1:
        raise BadValue(
            f"{file} holds {len(pairs)} sets, one for each repetition of its method.",
            f"say which: --number 0 to {len(pairs) - 1} (in Python number=); import each to compare them",
        )
    if not 0 <= (number or 0) < len(pairs):
        raise BadValue(f"{file} holds {len(pairs)} set(s), got number {number}.", f"give 0 to {len(pairs) - 1}")
    images, labels = pairs[number or 0]
    return {"images": images, "labels": labels}


def foreign_set(file: str, images: Any, labels: Any, beside: Mapping[str, Any], classes: int, say: Say) -> ForeignSet:
    """The set of these images and labels, with what the fields ``beside`` them state: soft labels and class order.

    ``say`` receives where soft labels are read from, and the names of fields that are not read.  Raises
    :class:`BadValue` for soft labels that are not one row of ``classes`` numbers for each image.
    """
    others = dict(beside)
    kind = others.pop(SOFT_LABEL_KIND, None)
    soft = _soft_label_field(others, classes, file)
    soft_labels = None if soft is None else others.pop(soft)
    order = _stated_order(others, file)
    left = sorted(name for name in others if order is None or order.where != _field(file, name))
    if soft is not None and soft != "soft_labels":
        say(Note(f"soft labels are read from {_field(file, soft)}"))
    if left:
        say(Note(f"not read from {file}: {', '.join(left)}", doubtful=True))
    return ForeignSet(images, labels, order, soft_labels, kind)


def _header(path: Path) -> dict[str, Any]:
    """The text fields in the header of a safetensors file."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as opened:
        return {name: value for name, value in (opened.metadata() or {}).items() if name != "format"}


def _soft_label_field(others: Mapping[str, Any], classes: int, file: str) -> str | None:
    """The field with soft labels (N, C) beside the hard ones; raises for others that look like soft labels."""
    found = []
    for name, value in others.items():
        shape = tuple(getattr(value, "shape", ()))
        array = type(value).__name__.endswith("multiarray._reconstruct")  # a NumPy array, which is not unpickled
        named = SOFT_NAMES.search(name.lower()) and (shape or array or isinstance(value, (list, tuple, Mapping)))
        floats = bool(shape) and value.dtype.is_floating_point
        if floats and len(shape) == 2 and shape[1] == classes:
            found.append(name)
        elif named or (floats and len(shape) >= 2 and shape[-1] == classes):
            raise BadValue(
                f"{file} holds {name!r} beside its labels{f' (shape {shape})' if shape else ''}, which looks like soft "
                f"labels, but is not a tensor with one row of {classes} floats for each image.",
                f"to import them, save 'soft_labels' (N, {classes}); for the images and hard labels alone, leave "
                f"{name!r} out",
            )
    if len(found) > 1:
        names = " and ".join(map(repr, sorted(found)))
        raise BadValue(f"{file} holds {names}, which all look like soft labels.", "save one of them as 'soft_labels'")
    return found[0] if found else None


def _field(file: str, name: str) -> str:
    return f"{file}, field {name!r}"


def _stated_order(others: Mapping[str, Any], file: str) -> StatedOrder | None:
    """The class order that a field states; a plain number is one of classes, not an order."""
    for name, value in others.items():
        number = isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0 or str(value).isdecimal()
        if _ORDER.search(name.lower()) and not number:
            return StatedOrder.read(value, _field(file, name))
    return None
