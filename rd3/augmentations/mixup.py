"""MixUp."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Draws, Mix, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen


@register_augmentation("mixup")
class MixUp(Mix):
    """Blend each image with another of the batch, in one proportion per batch (Zhang et al., 2018)."""

    class Settings(Frozen):
        alpha: float = Field(default=0.8, gt=0)
        """Both parameters of the Beta distribution from which lambda, the weight of the base image, is drawn."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """The partner of each image, and one lambda for the whole batch."""
        import numpy as np

        seed, alpha = int(torch.randint(2**62, (), generator=stream)), self.settings.alpha
        lam = float(np.random.default_rng(seed).beta(alpha, alpha))
        return torch.randperm(batch, generator=stream), torch.full((batch,), lam, dtype=torch.float64)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        """``lam * image + (1 - lam) * partner``.  The loss mixes the labels."""
        partner, lam = draws
        weight = lam.to(images.dtype)[:, None, None, None]
        return weight * images + (1 - weight) * images[partner]
