"""Conversion to uint8 and compression of images when they are stored."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from rd3.lazy import torch

SaveFormat = Literal["png", "jpeg"]
"""``png``: lossless; ``jpeg``: pixels after JPEG compression at quality 75, as most authors stored them."""


def to_uint8(pixels: torch.Tensor, save_format: SaveFormat) -> torch.Tensor:
    """(B, 3, H, W) float in 0-255 -> uint8: clamped and truncated, not rounded, as all released code does."""
    images = pixels.detach().clamp(0, 255).to(torch.uint8).cpu()
    return torch.stack([_through_jpeg(image) for image in images]) if save_format == "jpeg" else images


def _through_jpeg(image: torch.Tensor) -> torch.Tensor:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "JPEG", quality=75)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1).contiguous()
