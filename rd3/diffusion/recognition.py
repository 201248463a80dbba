"""Whether a backbone's images show their classes: the share that a teacher recognises."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from rd3.augment import to_unit
from rd3.diffusion.codec import to_size
from rd3.diffusion.sampler import sample
from rd3.seeding import generator

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone
    from rd3.models import NormalisedNetwork


BATCH = 50
"""Images generated at once."""


class Recognition(NamedTuple):
    """Generated images, and which of them a teacher assigns to the class they were made for."""

    images: torch.Tensor
    """(N, 3, H, W) uint8, class by class."""
    labels: torch.Tensor
    """(N,) int64: the classes that were asked for."""
    predicted: torch.Tensor
    """(N,) int64: the teacher's."""

    @property
    def pct(self) -> float:
        """Share of images whose class the teacher recognises (0-100)."""
        return 100 * float((self.predicted == self.labels).float().mean())


def recognition(
    backbone: Backbone,
    teacher: NormalisedNetwork,
    per_class: int,
    *,
    guidance: float = 4.0,
    progress: Callable[[float, str], None] = lambda fraction, note: None,
) -> Recognition:
    """Generate ``per_class`` images of every class of the backbone's dataset and let ``teacher`` classify them.

    Images take 50 steps of the backbone's own scheduler; ``guidance``: scale of the classifier-free guidance.
    """
    members = [(label, k) for label in range(backbone.info.num_classes) for k in range(per_class)]
    images, predicted = [], []
    for first in range(0, len(members), BATCH):
        part = members[first : first + BATCH]
        latents = sample(
            backbone,
            backbone.scheduler(),
            backbone.conditions(torch.tensor([label for label, _k in part])),
            [generator(0, "recognition", *member) for member in part],
            part,
            steps=50,
            guidance=guidance,
        )
        with torch.inference_mode():
            images.append(to_size(backbone.codec.decode(latents), backbone.info.resolution))
            predicted.append(teacher(to_unit(images[-1])).argmax(dim=1).cpu())
        progress((first + len(part)) / len(members), f"images {first + len(part)}/{len(members)}")
    labels = torch.tensor([label for label, _k in members])
    return Recognition(torch.cat(images).cpu(), labels, torch.cat(predicted))
