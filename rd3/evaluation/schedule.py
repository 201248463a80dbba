"""Learning-rate schedules in closed form, for the training loops."""

from __future__ import annotations

import math


def zeta_cosine(epoch: int, epochs: int, zeta: float, warmup_epochs: int = 0) -> float:
    """Factor on the learning rate during one epoch of post-evaluation.

    ``epoch`` counts from 0; the rate is constant within an epoch.  zeta 1 is the ordinary cosine, which reaches zero
    at ``epochs``; zeta 2 decays more slowly and ends at half; below 1 it would rise again after ``zeta * epochs``.
    The warm-up is linear and reaches the full rate in its last epoch; the cosine follows over the remaining epochs.
    Source: RD3, smoothing factor (1 + cos(pi i / (zeta N))) / 2; with zeta 2 the form in LINs-lab/RDED.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    return (1 + math.cos(math.pi * (epoch - warmup_epochs) / (zeta * (epochs - warmup_epochs)))) / 2
