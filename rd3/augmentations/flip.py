"""Horizontal flips."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen


@register_augmentation("flip")
class Flip(Augmentation):
    """Mirror each image left to right with a probability: torchvision's RandomHorizontalFlip."""

    class Settings(Frozen):
        probability: float = Field(default=0.5, gt=0, le=1)
        """Probability that an image is mirrored."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Whether each image is mirrored, (B,) bool."""
        return (torch.rand(batch, generator=stream) < self.settings.probability,)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        (mirrored,) = draws
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)
