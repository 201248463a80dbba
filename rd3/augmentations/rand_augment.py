"""RandAugment."""

from __future__ import annotations

from pydantic import Field

from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.seeding import scoped
from rd3.values import Frozen


@register_augmentation("rand_augment")
class RandAugment(Augmentation):
    """Random operations of one magnitude (Cubuk et al., 2020), by torchvision.

    Pixels are first clamped to [0, 1] and rounded to 8 bits, on which the published operations work.
    """

    class Settings(Frozen):
        operations: int = Field(default=2, ge=1)
        """Random operations applied to each image, one after the other."""
        magnitude: int = Field(default=9, ge=0, le=30)
        """Magnitude of the operations, on a scale from 0 to 30."""

    settings: Settings

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """A seed for each image, (B,) int64: operations take varying numbers of draws."""
        return (torch.randint(2**62, (batch,), generator=stream),)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        from torchvision.transforms import v2

        (seeds,) = draws
        change = v2.RandAugment(self.settings.operations, self.settings.magnitude)
        changed = []
        for image, seed in zip((images * 255).round().clamp(0, 255).to(torch.uint8), seeds.tolist(), strict=True):
            with scoped(torch.Generator().manual_seed(seed)):
                changed.append(change(image))
        return torch.stack(changed).float().div_(255)
