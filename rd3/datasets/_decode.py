"""Decode images to pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rd3.foreign_files import broken_file
from rd3.inputs.pictures import check_depth, peculiarity, picture_fault, refusing_truncated_pictures

if TYPE_CHECKING:
    from PIL.Image import Image


@refusing_truncated_pictures()
def decode(encoded: bytes, where: str) -> Image:
    """Decode an RGB image; raises :class:`DataCorrupt`, with ``where`` (file and row) in the message.

    More than 8 bits per channel are a :class:`BadValue`, as their conversion cuts values off.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            check_depth(image, where)
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fact = picture_fault(error, where, "download that file again from its source")
        raise (broken_file(where) if Path(where).is_file() else None) or fact from error


@refusing_truncated_pictures()
def lost_in_rgb(encoded: bytes) -> list[str]:
    """What :func:`decode` drops or ignores of an image that it can decode, in the words of :func:`peculiarity`."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        found = peculiarity(image)
    return [found] if found else []


def fit_size(image: Image, resize: int, crop: int) -> Image:
    """Resize the shorter side to ``resize`` (antialiased bilinear), then crop the centre ``crop`` x ``crop``.

    Sizes and offsets equal those of torchvision's Resize and CenterCrop on PIL images.
    """
    from PIL import Image as pil

    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != resize:
        other = int(resize * long / short)
        width, height = (resize, other) if width <= height else (other, resize)
        image = image.resize((width, height), pil.Resampling.BILINEAR)
    if (width, height) == (crop, crop):
        return image
    left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
    return image.crop((left, top, left + crop, top + crop))


def planes(image: Image) -> np.ndarray:
    """The pixels of an RGB image, (3, H, W) uint8."""
    return np.asarray(image).transpose(2, 0, 1)
