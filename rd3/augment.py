"""Batched augmentation on the device, for post-evaluation, teachers and methods.

Random numbers are drawn on the CPU from the given generator, so that every device sees the same views; pixels,
``images: (B, C, H, W)``, are transformed on their device.  Sources: LINs-lab/RDED ``validation/utils.py`` (patch
shuffle, CutMix box), torchvision (``RandomResizedCrop``, ``RandomCrop``).
"""

from __future__ import annotations

import math

from rd3.lazy import F, torch

RATIO = (3 / 4, 4 / 3)
"""Range of a crop's aspect ratio, width by height."""
TRIES = 10
"""Random boxes of which the first that fits into the image is used."""


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 0-255 to float32 in [0, 1]; floats are assumed to be in [0, 1] already."""
    if images.dtype != torch.uint8:
        return images.float()
    # By a tensor: CUDA multiplies by the rounded inverse of a number, and its pixels would differ from the CPU's.
    return images.float().div_(torch.full((), 255.0, device=images.device))


def shuffled_strips(batch: int, side: int, factor: int, stream: torch.Generator) -> torch.Tensor:
    """(batch, side) int64: for each image, the source line (row or column) at each position.

    ``factor`` is the number of strips, at most ``side``.
    """
    position = torch.rand(batch, factor, generator=stream).argsort(dim=1)
    strip = (torch.arange(side) // (side // factor)).clamp_(max=factor - 1)
    # A stable sort of the lines by the new position of their strip keeps the order within the strip.
    return position[:, strip].argsort(dim=1, stable=True)


def take_lines(images: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Reorder each image's columns and then its rows by source positions, (B, W) and (B, H) int64."""
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return images.gather(2, rows[:, None, :, None].expand_as(images))


def crop_boxes(
    batch: int, height: int, width: int, min_area: float, stream: torch.Generator, *, ratio: tuple[float, float] = RATIO
) -> torch.Tensor:
    """(batch, 4) int64 boxes (top, left, height, width), distributed as in torchvision's ``RandomResizedCrop``.

    The first of ten attempts with uniform area and log-uniform aspect ratio that fits is used; otherwise the largest
    central box of an allowed ratio.  ``min_area`` is a fraction of the image.
    """
    fraction = torch.empty(batch, TRIES, dtype=torch.float64).uniform_(min_area, 1.0, generator=stream)
    area = height * width * fraction
    log_aspect = torch.empty(batch, TRIES, dtype=torch.float64)
    aspect = log_aspect.uniform_(math.log(ratio[0]), math.log(ratio[1]), generator=stream).exp()
    corner = torch.rand(batch, 2, generator=stream, dtype=torch.float64)

    box_width, box_height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_width, box_height = box_width.gather(1, first)[:, 0], box_height.gather(1, first)[:, 0]
    top = (corner[:, 0] * (height - box_height + 1)).floor().long()
    left = (corner[:, 1] * (width - box_width + 1)).floor().long()
    boxes = torch.stack([top, left, box_height, box_width], dim=1)

    central_aspect = min(max(width / height, ratio[0]), ratio[1])
    central_width = min(width, round(height * central_aspect))
    central_height = min(height, round(width / central_aspect))
    central = [(height - central_height) // 2, (width - central_width) // 2, central_height, central_width]
    return torch.where(fits.any(dim=1, keepdim=True), boxes, torch.tensor(central))


def crop_and_resize(images: torch.Tensor, boxes: torch.Tensor, size: int, *, antialias: bool = True) -> torch.Tensor:
    """Crop each image to its own box and resize it bilinearly to ``size`` x ``size``.

    ``boxes``: (B, 4) int64 of top, left, height, width.  A separable resize is two matrix products, one matrix per
    image and direction; that equals ``torchvision.transforms.functional.resized_crop`` up to rounding.
    """
    boxes = boxes.to(images.device)
    down = _resize_weights(boxes[:, 0], boxes[:, 2], images.shape[2], size, antialias).to(images.dtype)
    across = _resize_weights(boxes[:, 1], boxes[:, 3], images.shape[3], size, antialias).to(images.dtype)
    return torch.einsum("bcsw,btw->bcst", torch.einsum("bsh,bchw->bcsw", down, images), across)


def _resize_weights(start: torch.Tensor, length: torch.Tensor, side: int, size: int, antialias: bool) -> torch.Tensor:
    """(B, size, side) float32 weights of a linear resize of ``length`` pixels from ``start``, zero outside the box.

    With antialias the triangle filter is as wide as the scale and truncated at the border of the box; without, it is
    one pixel wide and positions are clamped to the box.  Both as in ATen's ``upsample_bilinear2d``.
    """
    scale = (length.double() / size)[:, None, None]
    # Positions of pixel centres in the box: outputs (size) and inputs (side).
    outputs = scale * (torch.arange(size, device=start.device).double() + 0.5)[None, :, None]
    inputs = (torch.arange(side, device=start.device)[None] - start[:, None]).double()[:, None, :] + 0.5
    if antialias:
        radius = scale.clamp(min=1.0)
    else:
        radius = torch.ones_like(scale)
        outputs = torch.minimum(outputs.clamp(min=0.5), length.double()[:, None, None] - 0.5)
    weights = (1 - (inputs - outputs).abs() / radius).clamp_(min=0)
    weights = weights * ((inputs > 0) & (inputs < length[:, None, None]))
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def resized_crop(images: torch.Tensor, size: int, min_area: float, stream: torch.Generator) -> torch.Tensor:
    """Crop a random box of at least ``min_area`` of each image's area and resize it to ``size`` x ``size``."""
    boxes = crop_boxes(len(images), images.shape[2], images.shape[3], min_area, stream)
    return crop_and_resize(images, boxes, size)


def horizontal_flip(images: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """Flip each image horizontally with probability 0.5."""
    mirrored = (torch.rand(len(images), generator=stream) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def pad_crop(images: torch.Tensor, padding: int, stream: torch.Generator) -> torch.Tensor:
    """torchvision's ``RandomCrop(side, padding)`` for a batch: pad with zeros and crop each image at random."""
    top, left = (place.to(images.device) for place in pad_crop_places(len(images), padding, stream))
    return cut_padded(images, padding, top, left)


def pad_crop_places(batch: int, padding: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Top and left of each crop in the padded image, (batch,) int64 each."""
    top, left = torch.randint(2 * padding + 1, (2, batch), generator=stream)
    return top, left


def cut_padded(images: torch.Tensor, padding: int, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Pad with zeros and crop to the original size at ``top`` and ``left`` of the padded image, (B,) int64 each."""
    batch, channels, height, width = images.shape
    rows = (top[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = rows.expand(batch, channels, height, padded.shape[3])
    return padded.gather(2, rows).gather(3, columns.expand(batch, channels, height, width))


def cutmix_box(lam: float, centre: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of CutMix's box: half its side by integer division, clipped to the image.

    ``lam`` is the fraction of the area that is kept, before clipping; ``centre`` is (row, column).
    """
    half, (row, column) = int(math.sqrt(1 - lam) * side) // 2, centre
    return max(row - half, 0), min(row + half, side), max(column - half, 0), min(column + half, side)
