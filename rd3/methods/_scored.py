"""Shared steps of coresets that score images by a recorded training and select by coverage (CCS)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.lazy import torch
from rd3.methods import Block, Context, Cost, Method, Needs, Recording, Settings
from rd3.recipe import SetRecipe

if TYPE_CHECKING:
    from rd3.teacher.dynamics import Dynamics


class ScoredSettings(Settings):
    """Settings of coverage-centric selection (CCS), and the training that is recorded."""

    recorded: str | None = Field(default=None, exclude=True)
    """Role of the teacher whose training is recorded, which must be trained here and not imported; None: the grid's
    teacher.  The recipe stores the recorded training instead."""
    beta: float = Field(ge=0, lt=1)
    """Share of a class that is pruned, the hardest images first; less if fewer than IPC images would be left."""
    strata: int = Field(default=50, ge=1)
    """Intervals of equal width between the lowest and the highest score that remain after pruning, from which about
    equally many images are drawn; with fewer images per class than intervals, only the fullest intervals give one
    each."""


class ScoredCoreset(Method):
    """Base of AUM, EL2N and Forgetting; one block per class, easiest image first."""

    Settings: ClassVar[type[ScoredSettings]] = ScoredSettings

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        return Needs(dynamics=(Recording(settings.recorded or teacher),))

    @abstractmethod
    def hardness(self, recorded: Sequence[Dynamics], settings: Any) -> np.ndarray:
        """(N,) float64 scores of all images of the split, larger for harder ones."""

    def make(self, block: Block, ctx: Context) -> torch.Tensor:
        with ctx.phase("select"):
            label = block.labels[0]
            indices = ctx.class_indices(label, len(block.members))
            if "hardness" not in ctx.shared:
                ctx.shared["hardness"] = self.hardness(ctx.dynamics, ctx.settings)
            scores = ctx.shared["hardness"][indices]
            beta, strata = ctx.settings.beta, ctx.settings.strata
            chosen = ccs(scores, len(block.members), beta, strata, ctx.rng("select", label))
            return ctx.dataset.images(ctx.split, indices[chosen].tolist())

    def cost(self, recipe: SetRecipe, info: DatasetInfo, forward: Callable[[str], Cost]) -> Cost:
        return Cost()  # negligible: the recorded training is a recipe of its own


def mean_hardness(hardness: np.ndarray) -> np.ndarray:
    """(N,) float64 mean over epochs of (E, N).

    NaN marks an epoch that did not see the image, in its incomplete last batch, and is ignored; an image that no epoch
    saw counts as the hardest.
    """
    seen = ~np.isnan(hardness)
    total = np.where(seen, hardness, 0).sum(axis=0, dtype=np.float64)
    means = total / np.maximum(seen.sum(axis=0), 1)
    known = seen.any(axis=0)
    return np.asarray(np.where(known, means, means[known].max()))


def ccs(scores: np.ndarray, wanted: int, beta: float, strata: int, stream: torch.Generator) -> list[int]:
    """``wanted`` positions in ``scores`` (n,), easiest first: coverage-centric selection with a hard cutoff.

    Algorithm 1 of Zheng et al.: prune the share ``beta`` with the highest scores; divide the range of the others into
    ``strata`` intervals of equal width; draw from them at random, as many from each as :func:`budgets` says.
    """
    pruned = min(int(beta * len(scores)), len(scores) - wanted)
    kept = np.argsort(scores, kind="stable")[: len(scores) - pruned]
    stratum = _strata(scores[kept], strata)
    counts = np.bincount(stratum, minlength=strata)
    chosen = list[int]()
    for number, budget in enumerate(budgets(counts.tolist(), wanted)):
        members = kept[stratum == number]
        drawn = torch.randperm(len(members), generator=stream)[:budget].numpy()
        chosen += members[np.sort(drawn)].tolist()
    return chosen


def _strata(scores: np.ndarray, strata: int) -> np.ndarray:
    """(n,) int64: the interval, 0 to ``strata`` - 1, of each score (n,); the highest belongs to the last one."""
    width = (scores.max() - scores.min()) / strata
    if width == 0:
        return np.zeros(len(scores), dtype=np.int64)
    return np.asarray(np.minimum((scores - scores.min()) / width, strata - 1), dtype=np.int64)


def budgets(counts: Sequence[int], wanted: int) -> list[int]:
    """How many images each stratum gives: beginning with the smallest stratum, an equal share of what is still wanted.

    A stratum with fewer images gives all of them; so ``wanted`` (at most the sum of ``counts``) is reached exactly.
    """
    found, left = [0] * len(counts), wanted
    for place, number in enumerate(sorted(range(len(counts)), key=lambda number: counts[number])):
        found[number] = min(counts[number], left // (len(counts) - place))
        left -= found[number]
    return found
