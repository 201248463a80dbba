"""Forgetting: real images sampled by how often a training forgets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rd3.methods import register_method
from rd3.methods._scored import ScoredCoreset, ScoredSettings

if TYPE_CHECKING:
    from rd3.teacher.dynamics import Dynamics


@register_method("forgetting", version=1)
class Forgetting(ScoredCoreset):
    """Real images sampled evenly over the range of forgetting events of their class, without the hardest (CCS).

    A forgetting event is an epoch of the recorded training in which an image is classified wrongly that was classified
    correctly in the epoch before; many events are a hard image.  An image that is never classified correctly counts as
    forgotten in every epoch.

    Source: Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019;
    selection by Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023,
    haizhongzheng/Coverage-centric-coreset-selection ``generate_importance_score.py``, ``core/data/Coreset.py``.

    Deviations: images that are never learned have as many events as epochs (Toneva et al.: infinitely many, which has
    no range to divide; CCS's code: none), so that they are pruned first (CCS's code always prunes by AUM); class by
    class, so that all classes have equally many images; pruning leaves at least IPC images.
    """

    def hardness(self, recorded: Sequence[Dynamics], settings: ScoredSettings) -> np.ndarray:
        [dynamics] = recorded
        return forgetting_events(dynamics.margins)


def forgetting_events(margins: np.ndarray) -> np.ndarray:
    """(N,) float64 number of forgetting events, from margins (E, N); an epoch without a margin (NaN) is passed over."""
    events, before = np.zeros(margins.shape[1]), np.zeros(margins.shape[1], dtype=bool)
    learned = before.copy()
    for margin in margins:
        seen, correct = ~np.isnan(margin), margin > 0
        events += before & seen & ~correct
        before = np.where(seen, correct, before)
        learned |= correct
    return np.where(learned, events, len(margins))
