"""Random crops after padding."""

from __future__ import annotations

from pydantic import Field

from rd3.augment import cut_padded, pad_crop_places
from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen


@register_augmentation("pad_crop")
class PadCrop(Augmentation):
    """Pad with zeros, then cut each image out at a random place: torchvision's RandomCrop with padding."""

    class Settings(Frozen):
        padding: int = Field(default=4, ge=1)
        """Zero padding on every side, in pixels."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Top and left of every crop in the padded image, (B,) int64 each."""
        return pad_crop_places(batch, self.settings.padding, stream)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        return cut_padded(images, self.settings.padding, *draws)
