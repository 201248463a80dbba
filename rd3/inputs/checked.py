"""The one check of images and labels from outside."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from rd3.errors import BadValue
from rd3.inputs.arrays import images_of
from rd3.inputs.class_order import ClassList, StatedOrder
from rd3.inputs.labels import class_labels, stated_by_column
from rd3.inputs.notes import Note, Say
from rd3.inputs.pixels import Space, unit_pixels
from rd3.inputs.soft_labels import soft_labels_of
from rd3.lazy import torch
from rd3.soft_labels import SoftLabels


class ImagesAndLabels(NamedTuple):
    """``images``: (N, 3, H, W) uint8 or float32 in [0, 1]; ``labels``: (N,) int64 in the dataset's class order."""

    images: torch.Tensor
    labels: torch.Tensor
    soft_labels: SoftLabels | None = None
    """Soft labels of the images, if there are any, with columns in the dataset's class order."""


def _axes(value: Any) -> int:
    """The number of axes of an array, a tensor, a picture or a list of these; 0 for anything else."""
    if isinstance(value, (list, tuple)) and value:
        return 1 + _axes(value[0])
    if hasattr(value, "getbands"):  # a picture of PIL's
        return 3
    if getattr(value, "is_nested", False):  # a tensor without sizes, which is refused where it is read
        return 0
    shape = getattr(value, "shape", None)
    return len(shape) if isinstance(shape, tuple) else 0


def check_images_and_labels(
    images: Any,
    labels: Any,
    info: ClassList,
    space: Space | None = None,
    *,
    order: StatedOrder | None = None,
    soft_labels: Any = None,
    soft_label_kind: Any = None,
    say: Say,
) -> ImagesAndLabels:
    """Check and convert images and labels in any form; raises an :class:`RD3Error` for what is wrong or ambiguous.

    The forms are those of :func:`images_of` and :func:`class_labels`; ``space``: the pixel space that the user states;
    ``order``: the class order that the file states; ``soft_labels``: (N, C) soft labels beside the classes, and what
    they are, as :func:`soft_labels_of` takes them.  ``say`` receives what was found.  Does not require equally many
    images per class.
    """
    if _axes(images) in (1, 2) and _axes(labels) == 4:
        raise BadValue(
            f"images have {'one axis' if _axes(images) == 1 else 'two axes'}, as labels have, and labels have four, as "
            "images have: they are in each other's place.",
            "give the images first and then the labels",
        )
    stacked, layout = images_of(images, info.resolution, info.name)
    order = order or stated_by_column(labels)
    found, numbering = class_labels(labels, len(stacked), info, order)
    pixels, values = unit_pixels(stacked, space or Space())
    soft, soft_notes = None, list[Note]()
    if soft_labels is not None:
        soft, soft_notes = soft_labels_of(soft_labels, soft_label_kind, found, info, order)
    elif soft_label_kind is not None:
        raise BadValue(f"soft_label_kind is {soft_label_kind!r}, but there are no soft labels.", "leave it out")
    for note in (*layout, *values, *numbering, *soft_notes, *_repeated(pixels)):
        say(note)
    return ImagesAndLabels(pixels.contiguous(), found, soft)


def _repeated(images: torch.Tensor) -> Iterator[Note]:
    """Notes on images of one colour, and on images that occur more than once."""
    flat = images.flatten(1)
    if single := int((flat.amax(1) == flat.amin(1)).sum()):
        yield Note(f"{single} of {len(images)} images have one value everywhere")
    different = len({sha256(image.contiguous().numpy().data).digest() for image in images})
    if different < len(images):
        yield Note(f"{len(images) - different} of {len(images)} images are copies of others")
