"""EL2N: real images sampled by the error of their predictions early in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue
from rd3.methods import Needs, Recording, register_method
from rd3.methods._scored import ScoredCoreset, ScoredSettings, mean_hardness

if TYPE_CHECKING:
    from rd3.teacher.dynamics import Dynamics


class EL2NSettings(ScoredSettings):
    """Settings of the score and of CCS."""

    early_epochs: int = Field(ge=1)
    """Number of first epochs of the recorded training over which the score is a mean."""
    runs: int = Field(default=1, ge=1)
    """Number of recorded trainings, with different seeds, over which the score is a mean."""


@register_method("el2n", version=1)
class EL2N(ScoredCoreset):
    """Real images sampled evenly over the range of EL2N scores of their class, without the hardest (CCS).

    EL2N is the Euclidean norm of the difference between predicted probabilities and one-hot label, as a mean over the
    first epochs of one or several recorded trainings; a high score is a hard image.

    Source: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021; selection by Zheng et al., "Coverage-centric
    Coreset Selection for High Pruning Rates", ICLR 2023, haizhongzheng/Coverage-centric-coreset-selection
    ``generate_importance_score.py`` (10 epochs of one training), ``core/data/Coreset.py`` (50 strata).

    Deviations: as CCS, errors are those during training, on augmented images (Paul et al. compute them after epoch 20
    without augmentation, over ten trainings); the hardest images by EL2N are pruned (CCS's code always prunes by AUM);
    class by class, so that all classes have equally many images; pruning leaves at least IPC images.
    """

    Settings = EL2NSettings
    quick = {"early_epochs": 1}

    def needs(self, info: DatasetInfo, settings: Any, teacher: str) -> Needs:
        role = settings.recorded or teacher
        return Needs(dynamics=tuple(Recording(role, run) for run in range(settings.runs)))

    def hardness(self, recorded: Sequence[Dynamics], settings: EL2NSettings) -> np.ndarray:
        epochs = min(len(dynamics.errors) for dynamics in recorded)
        if settings.early_epochs > epochs:
            raise BadValue(
                f"early_epochs is {settings.early_epochs}, the recorded training has {epochs} epochs.",
                f"set it to {epochs} at most",
            )
        return mean_hardness(np.concatenate([dynamics.errors[: settings.early_epochs] for dynamics in recorded]))
