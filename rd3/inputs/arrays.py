"""Arrays, tensors, sequences, pictures and columns from outside as one tensor."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rd3.errors import BadValue
from rd3.inputs.notes import Note
from rd3.inputs.pictures import DOUBTFUL, picture_fault, refusing_truncated_pictures, rgb_of
from rd3.lazy import torch

_FORMS = "a tensor, a NumPy array, a list of images or a column of datasets"
_FIX = f"give {_FORMS}; files are read by rd3 set import"
ONE_EACH = "give one class number for each image"


def _fix(what: str) -> str:
    return ONE_EACH if what == "labels" else _FIX


def described(value: Any) -> str:
    """What a value from outside is, for messages: ``a list``, ``an int``, ``text ('0.png')``."""
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def is_column(value: Any) -> bool:
    """Whether rows can be read from a value in order: a sequence, or a column of ``datasets`` or pandas."""
    if isinstance(value, (str, bytes, bytearray, Mapping, set, frozenset, type)):
        return False
    return hasattr(value, "__len__") and (hasattr(value, "__getitem__") or hasattr(value, "__iter__"))


def rows_of(column: Any, what: str) -> list[Any]:
    """The rows of a column; raises :class:`BadValue` where they cannot be read."""
    try:
        return column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    except Exception as error:
        raise BadValue(
            f"The rows of {what} cannot be read from {described(column)} ({type(error).__name__}: {error}).", _fix(what)
        ) from error


def tensor_of(value: Any, what: str) -> torch.Tensor:
    """Numbers in any array or nested sequence as a tensor on the CPU, without a graph; raises :class:`BadValue`."""
    if isinstance(value, torch.Tensor):
        return _dense_on_cpu(value, what)
    if isinstance(value, Sequence) and value and all(isinstance(row, torch.Tensor) for row in value):
        return torch.stack(_alike([_dense_on_cpu(row, what) for row in value], what))
    return torch.from_numpy(_numbers(value, what))


def _dense_on_cpu(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """A dense tensor on the CPU; unsigned types that torch cannot compute with become int64."""
    dense = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
    if not dense or tensor.is_complex():
        kind = "complex" if tensor.is_complex() else "not dense"
        raise BadValue(f"{what}: a tensor that is {kind} ({tensor.dtype}).", "give a dense tensor of real numbers")
    tensor = tensor.detach().cpu().as_subclass(torch.Tensor).resolve_neg()
    return tensor.to(torch.int64) if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64) else tensor


def _numbers(value: Any, what: str) -> np.ndarray:
    """A writable array of a type that torch has."""
    try:
        array = np.asanyarray(value)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadValue(f"{what} cannot be read as numbers ({first}).", _fix(what)) from error
    if np.ma.is_masked(array):
        raise BadValue(f"{what}: a masked array with masked values.", "fill them or leave their rows out")
    if array.dtype.kind not in "buif":
        raise BadValue(f"{what}: {described(value)} of {array.dtype}, expected numbers.", _fix(what))
    if array.dtype.kind == "u" and array.itemsize > 1:
        array = np.minimum(array.astype(np.uint64), np.uint64(np.iinfo(np.int64).max)).astype(np.int64)
    if array.dtype.kind == "f" and array.itemsize > 8:
        array = array.astype(np.float64)
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def images_of(images: Any, side: int, name: str) -> tuple[torch.Tensor, list[Note]]:
    """(N, 3, side, side) images of any real type, and what was converted.

    ``images``: (N, 3, H, W), (N, H, W, 3) or, as in .mat files, (H, W, 3, N), all also with one channel, as a tensor or
    an array; a list of such images or of PIL's; a column of ``datasets``.  ``name``: the dataset, for messages.  Raises
    :class:`BadValue`.
    """
    if _is_a(images, "DataLoader"):
        raise BadValue(
            "images are a DataLoader, which gives batches.",
            "join its batches: images, labels = (torch.cat(part) for part in zip(*loader)), or torch.cat(list(loader)) "
            "for images alone",
        )
    if _is_a(images, "Image") or not (is_column(images) or hasattr(images, "__array__")):
        what = "one picture" if _is_a(images, "Image") else described(images)
        raise BadValue(f"images are {what}, expected {_FORMS}.", _FIX)
    whole = isinstance(images, torch.Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind != "O")
    if whole or not is_column(images):
        return _channels_first(tensor_of(images, "images"), side, name)
    with refusing_truncated_pictures():  # pictures that are cut off are errors, also where a column decodes them itself
        rows = rows_of(images, "images")
        if not rows:
            raise BadValue("There are no images.", _FIX)
        found = [_image_of(row, f"Image {place}") for place, row in enumerate(rows)]
    together = torch.stack(_alike([image for image, _note in found], "images"))
    stack = f"{'torch' if isinstance(rows[0], torch.Tensor) else 'numpy'}.stack(images)"
    stacked, notes = _channels_first(together, side, name, stack)
    dropped = Counter(note for _image, note in found if note)
    return stacked, [
        *notes,
        *(Note(f"{count} images have {note}", note in DOUBTFUL) for note, count in dropped.items()),
    ]


_CLASSES = {"Image": "PIL.Image", "DataLoader": "torch.utils.data.dataloader"}
"""Module of each class that is recognised without loading it."""


def _is_a(value: Any, name: str) -> bool:
    """Whether this is an object of a class in :data:`_CLASSES`: a PIL image or a DataLoader."""
    return any(parent.__name__ == name and parent.__module__ == _CLASSES[name] for parent in type(value).__mro__)


def _image_of(row: Any, where: str) -> tuple[torch.Tensor, str | None]:
    """One image as a tensor of the layout that it has, (3, H, W) for pictures, and what was dropped of it."""
    if isinstance(row, Mapping) and ("bytes" in row or "path" in row):
        row = _opened(row, where)
    if isinstance(row, (Mapping, str, bytes)) or row is None:
        keys = f" with {', '.join(map(str, list(row)[:4]))}" if isinstance(row, Mapping) else ""
        fix = "give one column: dataset['image']" if keys else _FIX
        raise BadValue(f"{where} is {described(row)}{keys}, expected an array or a picture.", fix)
    if _is_a(row, "Image"):
        pixels, note = rgb_of(row, where)
        return torch.from_numpy(pixels).permute(2, 0, 1), note
    if isinstance(row, (tuple, list)) and len(row) == 2 and (_is_a(row[0], "Image") or getattr(row[0], "ndim", 0) > 1):
        raise BadValue(
            f"{where} is a pair of image and label, expected an image.",
            "give images and labels separately: images, labels = zip(*pairs)",
        )
    image = tensor_of(row, where)
    return (image[None] if image.ndim == 2 else image), None


def _opened(row: Mapping[str, Any], where: str) -> Any:
    """The picture in an encoded row of ``datasets``: its bytes, or the file that they are in."""
    import io

    from PIL import Image, UnidentifiedImageError

    content, path = row.get("bytes") or None, row.get("path")
    if not isinstance(content, (bytes, bytearray, memoryview, type(None))):
        raise BadValue(f"{where} has {described(content)} under 'bytes', expected the bytes of a file.", _FIX)
    if content is None and not isinstance(path, (str, os.PathLike, type(None))):
        raise BadValue(f"{where} has {described(path)} under 'path', expected the path of a file.", _FIX)
    source = path if content is None else io.BytesIO(content)
    try:
        if source is None:
            raise OSError("it has neither bytes nor a path")
        return Image.open(source)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise picture_fault(error, where, "replace or remove that row") from None


def _alike(images: list[torch.Tensor], what: str) -> list[torch.Tensor]:
    """The same images; raises unless all have one shape and one type."""
    for place, image in enumerate(images):
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            first, other = (f"{tuple(one.shape)} {str(one.dtype)[6:]}" for one in (images[0], image))
            raise BadValue(f"Row {place} of {what} is {other}, row 0 is {first}.", "give all of one size and type")
    return images


_PIXEL_TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
"""Types of torch that pixels may have: not floats of 8 or 4 bits, whose values torch does not even compare."""


def _channels_first(
    images: torch.Tensor, side: int, name: str, expression: str = "images"
) -> tuple[torch.Tensor, list[Note]]:
    """(N, 3, side, side) from the layouts whose axes are certain; raises :class:`BadValue` for others.

    ``expression``: what gives the array in the user's Python, for the advice in messages.
    """
    shape, notes = tuple(images.shape), list[Note]()
    if not shape or not len(images):
        raise BadValue("There are no images.", _FIX)
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype not in _PIXEL_TYPES:
        raise BadValue(
            f"images are {dtype}, expected uint8 or floats of at least 16 bits.",
            f"give them as they were before the conversion to {dtype}",
        )
    _refuse_latents(images, side)
    channels_last = images.ndim == 4 and shape[1:3] == (side, side) and shape[3] in (1, 2, 3, 4)
    if channels_last:
        images = images.permute(0, 3, 1, 2)
        notes.append(Note("images: channels moved from the last axis to the second"))
    elif images.ndim == 4 and shape[:2] == (side, side) and shape[2] in (1, 3) and shape[3] != 3:
        images = images.permute(3, 2, 0, 1)
        notes.append(Note("images: height, width, channels, number of images, as in a .mat file"))
    if images.ndim != 4 or images.shape[2:] != (side, side) or images.shape[1] not in (1, 2, 3, 4):
        fix = _reshape(shape, side, expression)
        raise BadValue(f"images have shape {shape}, {name} needs (N, 3, {side}, {side}).", fix)
    if images.shape[1] in (2, 4):
        images = _without_alpha(images, expression, "..., " if channels_last else ":, ")
        notes.append(Note("images: an alpha channel that is opaque everywhere is dropped"))
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
        notes.append(Note("images: grey, repeated in three channels"))
    return images, notes


def _reshape(shape: tuple[int, ...], side: int, expression: str) -> str:
    """What to do with an array of another shape, in words and Python."""
    if len(shape) == 5:
        return f"join the first two axes, {expression}.flatten(0, 1), and give one label for each image"
    if len(shape) == 3:
        if shape == (side, side, 3):
            return f"add the axis that is missing: {expression}[None]"
        single = f", {expression}[None] for a single one" if shape == (3, side, side) else ""
        return f"add the axis that is missing: {expression}[:, None] for grey images{single}"
    if len(shape) == 2 and shape[1] == 3 * side * side:
        return f"call {expression}.reshape(-1, 3, {side}, {side}), if the channels are stored one after the other"
    if shape == (side, side):
        return f"add the axes that are missing: {expression}[None, None] for a single grey image"
    if shape.count(side) >= 2 and 3 in shape:
        return "bring the axes into that order (transpose in NumPy, permute in torch); reshape would mix up the pixels"
    if len(shape) == 2 and shape[1] == side * side:
        return f"call {expression}.reshape(-1, 1, {side}, {side})"
    return f"resize them to {side} pixels, three channels each"


def _refuse_latents(images: torch.Tensor, side: int) -> None:
    """Raise for what a diffusion model makes before its decoder: four or sixteen channels, on both sides of zero."""
    if images.ndim != 4 or not images.dtype.is_floating_point or not bool((images < 0).any()):
        return
    shape = tuple(images.shape)
    channels = next((axis for axis in (1, 3) if shape[axis] in (4, 16) and shape[4 - axis] == shape[2]), None)
    if channels is None:
        return
    alpha = images.select(channels, shape[channels] - 1)
    if bool((alpha == alpha.amax()).all()):  # opaque RGBA in [-1, 1]
        return
    raise BadValue(
        f"images have shape {shape} and negative values: they are latents of a diffusion model, not pixels.",
        "decode them, vae.decode(latents / vae.config.scaling_factor).sample in diffusers, and give these images with "
        f"--normalised half (in Python normalised='half'), resized to {side} pixels where they differ",
    )


def _without_alpha(images: torch.Tensor, expression: str, before: str) -> torch.Tensor:
    """(N, C - 1, H, W) without the last channel, alpha; raises :class:`BadValue` if that is not opaque everywhere.

    For the advice: ``expression`` gives the user's array, and ``before`` indexes its axes before the channels.
    """
    opaque, channels = 1 if images.dtype.is_floating_point else 255, images.shape[1]
    if bool((images[:, -1] == opaque).all()):
        return images[:, :-1]
    scaled = "" if opaque == 1 else f" / {opaque}"
    raise BadValue(
        f"images have {'four' if channels == 4 else 'two'} channels, and the last is not {opaque} everywhere, as it "
        f"would be for opaque {'RGBA' if channels == 4 else 'grey with alpha'}.",
        f"put them on a background, here white: x = {expression}{scaled}; "
        f"images = x[{before}:-1] * x[{before}-1:] + 1 - x[{before}-1:]",
    )
