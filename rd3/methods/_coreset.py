"""Shared steps of coresets that select real images class by class, by a teacher's features (before its last layer)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from rd3.augment import to_unit
from rd3.datasets import DatasetInfo
from rd3.lazy import torch
from rd3.methods import Block, Context, Cost, Method, Needs
from rd3.methods._patch_scoring import images_per_pass
from rd3.recipe import SetRecipe


class FeatureCoreset(Method):
    """Base of methods that select images of a class one after the other; a block is a class, first choice first.

    The selection is deterministic and greedy, so it has no set seed, and a smaller set is the beginning of a larger
    one.
    """

    seeded: ClassVar[bool] = False

    @abstractmethod
    def select(self, features: np.ndarray, wanted: int) -> list[int]:
        """``wanted`` distinct rows of ``features``, (n, D) float64 of one class, in the order of their selection."""

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        return Needs(teachers=(teacher,))

    def nests(self, settings: Any, info: DatasetInfo) -> bool:
        return True

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        with ctx.phase("select"):
            indices = ctx.class_indices(block.labels[0], len(block.members))
            chosen = self.select(teacher_features(indices, ctx), len(block.members))
            return ctx.dataset.images(ctx.split, indices[chosen].tolist())

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        return info.train_count * forward(recipe.teachers[0])


def teacher_features(indices: np.ndarray, ctx: Context) -> np.ndarray:
    """(n, D) float64 input of the teacher's last linear layer for the images at these positions, without augmentation.

    Images are those of the dataset at its size; the teacher is in eval mode.
    """
    found, size = [], images_per_pass(ctx)
    for first in range(0, len(indices), size):
        pixels = ctx.dataset.images(ctx.split, indices[first : first + size].tolist())
        with torch.inference_mode(), ctx.autocast():
            features = ctx.teachers[0].features(to_unit(pixels.to(ctx.device)))
        found.append(features.flatten(1).double().cpu().numpy())
        ctx.progress(min(1.0, (first + size) / len(indices)))
    return np.concatenate(found)
