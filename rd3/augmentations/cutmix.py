"""CutMix."""

from __future__ import annotations

from rd3.augment import cutmix_box
from rd3.augmentations._base import Draws, Mix, register_augmentation
from rd3.lazy import torch


@register_augmentation("cutmix")
class CutMix(Mix):
    """Paste a box of another image of the batch into each image: one box a batch, its area uniform.

    Lambda is the share of pixels that stay the base image's, given the clipped box.  Source: LINs-lab/RDED
    ``validation/utils.py``.
    """

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Partner, lambda, and the box as top, bottom, left and right, (B, 4) int64."""
        drawn = torch.rand((), generator=stream, dtype=torch.float64).item()
        row = int(torch.randint(side, (), generator=stream))
        column = int(torch.randint(side, (), generator=stream))
        partner = torch.randperm(batch, generator=stream)
        top, bottom, left, right = cutmix_box(drawn, (row, column), side)
        lam = 1 - (bottom - top) * (right - left) / (side * side)
        box = torch.tensor([top, bottom, left, right]).expand(batch, 4)
        return partner, torch.full((batch,), lam, dtype=torch.float64), box

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        """By a mask, as the images of several batches have different boxes."""
        partner, _lam, box = draws
        line = torch.arange(images.shape[-1], device=images.device)
        top, bottom, left, right = box.T[:, :, None]
        rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], images[partner], images)
