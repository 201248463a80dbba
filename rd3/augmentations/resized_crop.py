"""Random resized crops."""

from __future__ import annotations

from pydantic import Field

from rd3.augment import crop_and_resize, crop_boxes
from rd3.augmentations._base import Augmentation, Draws, register_augmentation
from rd3.lazy import torch
from rd3.values import Frozen


@register_augmentation("resized_crop")
class ResizedCrop(Augmentation):
    """Resize a random box of aspect ratio 3/4 to 4/3 to the size of the image: torchvision's RandomResizedCrop."""

    class Settings(Frozen):
        min_area: float | None = Field(default=None, gt=0, le=1)
        """Minimum area of the box, as a fraction of the image; None uses 1 / the dataset's factor, RDED's patches per
        side (so 1 at 32 and 64 pixels, 0.5 at 224)."""
        antialias: bool = True
        """Antialias when resizing (not stated in the paper)."""

    settings: Settings

    @classmethod
    def resolve(cls, settings: Settings, factor: int) -> Settings | None:
        """Fill in the area; None if the box is always the whole image, so that the step has no effect."""
        area = settings.min_area or 1 / factor
        return settings.model_copy(update={"min_area": area}) if area < 1 else None

    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Top, left, height and width of every box, (B, 4) int64."""
        area = self.settings.min_area
        assert area is not None, "resolved settings have a minimum area"
        return (crop_boxes(batch, side, side, area, stream),)

    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        (boxes,) = draws
        return crop_and_resize(images, boxes, images.shape[-1], antialias=self.settings.antialias)
