"""RandAugment by timm."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.seeding import scoped_globals
from rd3.values import Frozen

MEAN = (124, 116, 104)
"""Colour (0-255) of pixels that an operation leaves empty: the mean of ImageNet."""


@register_augmentation("timm_rand_augment")
class TimmRandAugment(Augmentation):
    """Random operations, each applied or not, whose magnitude varies (Cubuk et al., 2020), by timm.

    Its magnitudes go from 0 to 10 and its operations differ from those of ``rand_augment``.  Pixels are first clamped
    to [0, 1] and rounded to 8 bits.  Source: VILA-Lab/DELT ``evaluation/validation/main.py``, ``rand-m6-n2-mstd1.0``.
    """

    class Settings(Frozen):
        operations: int = Field(default=2, ge=1)
        """Random operations for each image, one after the other."""
        magnitude: int = Field(default=6, ge=0, le=10)
        """Mean magnitude of an operation."""
        magnitude_std: float = Field(default=1.0, ge=0, le=100)
        """Standard deviation of the magnitude, which is clipped to 0 to 10."""
        probability: float = Field(default=0.5, gt=0, le=1)
        """Probability that a chosen operation is applied."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """A seed for each image, (B,) int64: operations take varying numbers of draws."""
        return (torch.randint(2**32, (batch,), generator=stream),)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        import numpy as np
        from timm.data.auto_augment import rand_augment_transform
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        given = self.settings
        # timm splits the text at hyphens, so that numbers must not be written as 1e-05.
        std, probability = map(np.format_float_positional, (given.magnitude_std, given.probability))
        text = f"rand-m{given.magnitude}-n{given.operations}-mstd{std}-p{probability}"
        change = rand_augment_transform(text, {"img_mean": MEAN})
        (seeds,) = draws
        changed = []
        for image, seed in zip((images * 255).round().clamp(0, 255).to(torch.uint8), seeds.tolist(), strict=True):
            with scoped_globals(seed):
                changed.append(pil_to_tensor(change(to_pil_image(image.cpu()))))
        return torch.stack(changed).to(images.device).float().div_(255)
