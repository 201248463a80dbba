"""Colour jitter."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey version."""


@register_augmentation("colour_jitter")
class ColourJitter(Augmentation):
    """Change brightness, contrast and saturation of each image by random amounts, in random order.

    Each moves the image, by a factor drawn from -strength to strength, towards (if negative, away from) black, its mean
    grey, or its grey version.  Pixels may leave [0, 1].  Source: vimar-gu/MinimaxDiffusion ``misc/utils.py`` (IDC).
    """

    class Settings(Frozen):
        brightness: float = Field(default=0.4, ge=0)
        """Strength of the change of brightness."""
        contrast: float = Field(default=0.4, ge=0)
        """Strength of the change of contrast."""
        saturation: float = Field(default=0.4, ge=0)
        """Strength of the change of saturation."""

    settings: Settings

    @classmethod
    def resolve(cls, settings: Settings, factor: int) -> Settings | None:
        return settings if settings.brightness or settings.contrast or settings.saturation else None

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Order of the three changes, (B, 3) int64, and the factor of each (not in that order), (B, 3) float32."""
        order = torch.rand(batch, 3, generator=stream).argsort(dim=1)
        strengths = torch.tensor([self.settings.brightness, self.settings.contrast, self.settings.saturation])
        return order, (2 * torch.rand(batch, 3, generator=stream) - 1) * strengths

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        order, factors = draws
        weights = torch.tensor(GREY, device=images.device)[:, None, None]
        for change in order.T:  # (B,): 0 brightness, 1 contrast, 2 saturation
            grey = (images * weights).sum(dim=1, keepdim=True)
            ends = torch.stack([torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True).expand_as(grey), grey])
            end = ends[change, torch.arange(len(images), device=images.device)]
            factor = factors.gather(1, change[:, None])[:, :, None, None]
            images = images.lerp(end.expand_as(images), factor)
        return images
