"""Pictures of PIL as 8-bit RGB: what converts without loss, and what does not."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rd3.errors import BadValue, DataCorrupt

if TYPE_CHECKING:
    from PIL.Image import Image

_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_BITS_PER_SAMPLE = 258
"""Tag of TIFF files."""
_ORIENTATION = 0x112
"""Tag of EXIF; 1 is upright."""
SIXTEEN_BITS = "16 bits per channel; the upper 8 are kept"
ROUNDED = "more than 8 bits per channel; they are rounded to 8"
OPAQUE_ALPHA = "an alpha channel that is opaque everywhere; it is dropped"
TRANSPARENT = "an alpha channel with transparent pixels; it is dropped"
FRAMES = "several frames or pages, of which one is read: the first of a file, as torchvision's ImageFolder reads it"
TURNED = "an EXIF orientation; they are read as stored, not turned, as torchvision's ImageFolder reads them"

DOUBTFUL = (TRANSPARENT, FRAMES, TURNED)
"""Peculiarities that are warnings."""


class _Strict:
    """How many :func:`refusing_truncated_pictures` contexts are open in this process, and PIL's flag before."""

    lock = threading.Lock()
    depth = 0
    before = False


@contextlib.contextmanager
def refusing_truncated_pictures() -> Iterator[None]:
    """A context, or decorator, in which a picture that is cut off is an error of PIL's and never becomes half grey.

    It switches ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` off, which notebooks set.  That flag is the process's, so the
    first of several threads switches it off and the last one restores it.
    """
    from PIL import ImageFile

    with _Strict.lock:
        if not _Strict.depth:
            _Strict.before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        _Strict.depth += 1
    try:
        yield
    finally:
        with _Strict.lock:
            _Strict.depth -= 1
            if not _Strict.depth:
                ImageFile.LOAD_TRUNCATED_IMAGES = _Strict.before


def check_depth(image: Image, where: str) -> None:
    """Raise :class:`BadValue` for a picture of more than 8 bits per channel, which PIL's conversion to RGB cuts off."""
    if image.mode.startswith(("I", "F")):
        raise BadValue(
            f"{where} has more than 8 bits per channel (mode {image.mode}), expected 8.",
            "scale it to 8 bits and save it again, for 16 bits: numpy.asarray(image) // 256 as uint8",
        )


def peculiarity(image: Image) -> str | None:
    """What is read otherwise than stored of a picture that passes :func:`check_depth`; None for nothing."""
    reduced, frames = _reduction(image), _has_frames(image)
    alpha = image.mode in _ALPHA or "transparency" in image.info
    if alpha and not reduced:
        lowest, _highest = _rgba(image).getchannel("A").getextrema()
        if lowest != 255:
            return TRANSPARENT
    if frames:
        return FRAMES
    if reduced:
        return reduced
    if alpha:
        return OPAQUE_ALPHA
    return TURNED if _is_turned(image) else None


def _has_frames(image: Image) -> bool:
    """Whether the file is an animation or has several pages; the previews in a camera's MPO are neither."""
    try:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    except (OSError, EOFError, SyntaxError, ValueError, TypeError, struct.error):  # later pages are damaged or closed
        return False


def _is_turned(image: Image) -> bool:
    """Whether EXIF says that the stored pixels are turned or mirrored; PIL itself turns TIFF upright."""
    try:
        return image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):  # damaged EXIF, which no reader minds
        return False


def _rgba(image: Image) -> Image:
    """The picture with an alpha channel; PIL converts premultiplied grey (La) in two steps only."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _reduction(image: Image) -> str | None:
    """How PIL has reduced more than 8 bits to 8 on opening, which it does for PNG, TIFF and PPM in colour."""
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        return SIXTEEN_BITS if max(bits if isinstance(bits, tuple) else (bits,)) > 8 else None
    # The decoder's arguments; only known until the pixels are loaded.
    tiles = getattr(image, "tile", ())
    if image.format == "PPM":  # (mode, largest value)
        return ROUNDED if any(isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in tiles) else None
    # BGR;16 is a pixel of 16 bits, as in BMP: 5, 6 and 5 of them per channel.
    deep_modes = any(";16" in str(part) and "BGR;16" not in str(part) for tile in tiles for part in tile)
    return SIXTEEN_BITS if deep_modes else None


def picture_fault(error: Exception, where: str, fix: str) -> DataCorrupt:
    """What keeps a picture from being decoded: its size, or what PIL says, with this ``fix``."""
    from PIL import Image as pil
    from PIL import UnidentifiedImageError

    if isinstance(error, pil.DecompressionBombError):
        most = 2 * (pil.MAX_IMAGE_PIXELS or 0)
        return DataCorrupt(f"{where} cannot be decoded: it has more than {most:,} pixels.", "resize it")
    said = [] if isinstance(error, UnidentifiedImageError) else str(error).splitlines()  # whose text is an address
    return DataCorrupt(f"{where} cannot be decoded as an image ({said[0] if said else type(error).__name__}).", fix)


@refusing_truncated_pictures()
def rgb_of(image: Image, where: str) -> tuple[np.ndarray, str | None]:
    """(H, W, 3) uint8 pixels of a picture of any 8-bit mode, and its :func:`peculiarity`.

    Raises :class:`BadValue` for more than 8 bits per channel and for transparent pixels, whose colour is undefined, and
    :class:`DataCorrupt` for a picture that cannot be decoded.
    """
    check_depth(image, where)
    try:
        found = peculiarity(image)
        if found == TRANSPARENT:
            two_steps = ".convert('LA')" if image.mode == "La" else ""
            raise BadValue(
                f"{where} has transparent pixels, whose colour depends on the background.",
                f"put it on a background: Image.alpha_composite(Image.new('RGBA', image.size, 'white'), "
                f"image{two_steps}.convert('RGBA')).convert('RGB')",
            )
        opaque = _rgba(image) if "transparency" in image.info or image.mode == "La" else image
        return np.array(opaque.convert("RGB")), found
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise picture_fault(error, where, "replace or delete it") from None
