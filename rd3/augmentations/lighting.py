"""Lighting noise."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen

EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Eigenvalues and, in columns, eigenvectors of the colours of ImageNet's pixels in [0, 1]."""


@register_augmentation("lighting")
class Lighting(Augmentation):
    """Add one colour to all pixels of an image: noise along the principal components of ImageNet's colours.

    Pixels may leave [0, 1].  Sources: Krizhevsky et al., 2012; vimar-gu/MinimaxDiffusion ``misc/utils.py``.
    """

    class Settings(Frozen):
        std: float = Field(default=0.1, gt=0)
        """Standard deviation of the normal factor on each eigenvalue."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Factor on each eigenvalue, (B, 3) float32."""
        return (torch.randn(batch, 3, generator=stream) * self.settings.std,)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        (factors,) = draws
        components = torch.tensor(EIGENVECTORS, device=images.device) * torch.tensor(EIGENVALUES, device=images.device)
        # A sum of products, as matrix products may be rounded to fewer digits on CUDA.
        colour = (components[None] * factors[:, None, :]).sum(dim=2)
        return images + colour[:, :, None, None]
