"""What an augmentation is: random draws for one batch, and what they do to the pixels of many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rd3.component import Component, NoSettings
from rd3.lazy import torch
from rd3.registry import Registry
from rd3.values import Frozen

if TYPE_CHECKING:
    Draws = tuple[torch.Tensor, ...]
else:
    Draws = tuple
"""CPU tensors whose first dimension is the batch, so that those of several batches can be concatenated."""


class Augmentation(ABC):
    """One named step of a protocol's ``augmentation``.

    Random numbers are drawn on the CPU, one batch at a time, so that every device sees the same views; :meth:`apply`
    transforms the pixels of several batches at once.  The docstring's first line is its summary.
    """

    Settings: ClassVar[type[Frozen]] = NoSettings
    """Settings with defaults; a field that is None by default is filled in by :meth:`resolve`."""
    mixes: ClassVar[bool] = False
    """Whether it mixes images of a batch; see :class:`Mix`."""
    settings: Frozen
    """The resolved settings."""

    def __init__(self, settings: Frozen):
        self.settings = settings

    @classmethod
    def resolve(cls, settings: Any, factor: int) -> Frozen | None:
        """Settings with every None filled in, or None if the step would have no effect.

        ``factor`` is the dataset's patches per side (:attr:`rd3.datasets.DatasetInfo.factor`).
        """
        return cast(Frozen, settings)

    @abstractmethod
    def draw(self, batch: int, side: int, stream: torch.Generator) -> Draws:
        """Draw random numbers for ``batch`` images of ``side`` x ``side`` pixels: CPU tensors (B, ...)."""

    @abstractmethod
    def apply(self, images: torch.Tensor, *draws: torch.Tensor) -> torch.Tensor:
        """Transform (N, C, H, W) float32 in [0, 1], with draws (N, ...) on the same device; not in place."""


class Mix(Augmentation):
    """An augmentation that mixes images of a batch in pairs; it comes last.

    The first two draws are the position of each image's partner, (B,) int64, and lambda, the image's own share, (B,)
    float64, equal in a batch.  Positions are within the batch in :meth:`draw`, within all images in :meth:`apply`.
    """

    mixes = True


AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation", "rd3.augmentations")

register_augmentation: Callable[[str], Callable[[type[Augmentation]], type[Augmentation]]] = AUGMENTATIONS.register
"""Class decorator: register an augmentation under a name, which a protocol's ``augmentation`` lists."""


def transforms(augmentation: Iterable[Component]) -> list[Augmentation]:
    """The steps of a resolved protocol as augmentations, in order."""
    steps = []
    for component in augmentation:
        cls = AUGMENTATIONS.get(component.name)
        steps.append(cls(cls.Settings.model_validate(component.settings)))
    return steps
