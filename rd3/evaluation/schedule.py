"""Learning-rate schedules in closed form, for the training loops.

Each is a factor on the learning rate during one epoch; the rate is constant within an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rd3.protocol import EvalProtocol

_DROPS = (2 / 3, 5 / 6)
_DROP = 0.2


def zeta_cosine(epoch: int, epochs: int, zeta: float) -> float:
    """Half a cosine, stretched by zeta.

    ``epoch`` counts from 0.  zeta 1 is the ordinary cosine, which reaches zero at ``epochs``; zeta 2 decays more slowly
    and ends at half; below 1 it would rise again after ``zeta * epochs``.  Source: RD3, smoothing factor
    (1 + cos(pi i / (zeta N))) / 2; with zeta 2 the form in LINs-lab/RDED.
    """
    return (1 + math.cos(math.pi * epoch / (zeta * epochs))) / 2


def zeta_linear(epoch: int, epochs: int, zeta: float) -> float:
    """A line from 1 that would reach zero at ``zeta * epochs``, where it stays.

    With zeta 2 it is the schedule of EDC's script for ImageNet-1K (shaoshitong/EDC).
    """
    return max(0.0, 1 - epoch / (zeta * epochs))


def multistep(epoch: int, epochs: int, zeta: float) -> float:
    """A fifth after two thirds of the epochs, and a fifth of that after five sixths; zeta has no effect.

    Source: vimar-gu/MinimaxDiffusion ``train.py``, after IDC.
    """
    return _DROP ** sum(epoch >= share * epochs for share in _DROPS)


SCHEDULES: Mapping[str, Callable[[int, int, float], float]] = {
    "cosine": zeta_cosine,
    "linear": zeta_linear,
    "multistep": multistep,
}
"""By name in a protocol's ``schedule``: (epoch from 0, epochs, zeta) to a factor on the learning rate."""


def rate_factor(protocol: EvalProtocol, epoch: int) -> float:
    """Factor on the learning rate of a protocol during one epoch, counted from 0.

    The warm-up is linear and reaches the full rate in its last epoch; the schedule takes the remaining epochs.
    """
    warm = protocol.warmup_epochs
    if epoch < warm:
        return (epoch + 1) / warm
    return SCHEDULES[protocol.schedule](epoch - warm, protocol.epochs - warm, protocol.zeta)
