"""From encoded bytes to pixels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rd3.errors import DataCorrupt

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def decode(encoded: bytes, where: str) -> Image:
    """An RGB image; ``where`` names file and row in the error."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataCorrupt(
            f"{where}: the image cannot be decoded ({type(error).__name__}, {len(encoded)} bytes).",
            "get that file again from its source",
        ) from error


def fit_size(image: Image, resize: int, crop: int) -> Image:
    """Shorter side to ``resize`` (antialiased bilinear), then the centre ``crop`` x ``crop``.

    The sizes and offsets are those of torchvision's Resize and CenterCrop on PIL images.
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
    """(3, H, W) uint8 of an RGB image."""
    import numpy as np

    return np.asarray(image).transpose(2, 0, 1)
