"""RDED's patch shuffle."""

from __future__ import annotations

from pydantic import Field

from rd3.augment import shuffled_strips, take_lines
from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.errors import BadValue
from rd3.lazy import torch
from rd3.values import Frozen


@register_augmentation("patch_shuffle")
class PatchShuffle(Augmentation):
    """Permute whole columns of patches, then whole rows of patches, within each image.

    Source: LINs-lab/RDED ``validation/utils.py``.
    """

    class Settings(Frozen):
        grid: int | None = Field(default=None, ge=1)
        """Patches per side, the last with the remainder; None: the dataset's factor (1 at 32 and 64 pixels, else 2)."""

    settings: Settings

    @classmethod
    def resolve(cls, settings: Settings, factor: int) -> Settings | None:
        """Fill in the grid; None for a grid of 1, which has no effect."""
        grid = settings.grid or factor
        return cls.Settings(grid=grid) if grid > 1 else None

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Source column and source row of every position, (B, side) int64 each."""
        grid = self.settings.grid
        assert grid is not None, "resolved settings have a grid"
        if grid > side:
            raise BadValue(f"patch_shuffle has grid {grid}, images have {side} pixels a side.", f"use {side} at most")
        return tuple(shuffled_strips(batch, side, grid, stream) for _axis in range(2))

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        return take_lines(images, *draws)
