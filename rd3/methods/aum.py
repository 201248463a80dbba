"""AUM: real images sampled by the mean margin of their class during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rd3.methods import register_method
from rd3.methods._scored import ScoredCoreset, ScoredSettings, mean_hardness

if TYPE_CHECKING:
    from rd3.teacher.dynamics import Dynamics


@register_method("aum", version=1)
class AUM(ScoredCoreset):
    """Real images sampled evenly over the range of the area under the margin of their class, without the hardest (CCS).

    The margin is the logit of the true class minus the largest other logit, and AUM its mean over all epochs of the
    recorded training; a low AUM is a hard image.

    Source: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020;
    selection by Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates", ICLR 2023,
    haizhongzheng/Coverage-centric-coreset-selection ``core/data/Coreset.py``.

    Deviations: margins of logits as in Pleiss et al. (CCS's code: of probabilities); over the whole training (Pleiss et
    al. end before the first drop of the learning rate, which a cosine does not have); class by class, so that all
    classes have equally many images; pruning leaves at least IPC images.
    """

    def hardness(self, recorded: Sequence[Dynamics], settings: ScoredSettings) -> np.ndarray:
        [dynamics] = recorded
        return mean_hardness(-dynamics.margins)
