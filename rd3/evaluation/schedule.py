"""Learning-rate schedules in closed form, for the training loops.

Each is a factor on the learning rate during one epoch; the rate is constant within an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rd3.protocol import EvalProtocol


def zeta_cosine(epoch: int, epochs: int, zeta: float) -> float:
    """Half a cosine, stretched by zeta.

    ``epoch`` counts from 0.  zeta 1 is the ordinary cosine, which reaches zero at ``epochs``; zeta 2 decays more slowly
    and ends at half; below 1 it would rise again after ``zeta * epochs``.  Source: the RD3 paper, smoothing factor
    (1 + cos(pi i / (zeta N))) / 2; with zeta 2 the form in LINs-lab/RDED.
    """
    return (1 + math.cos(math.pi * epoch / (zeta * epochs))) / 2


def zeta_linear(epoch: int, epochs: int, zeta: float) -> float:
    """A line from 1 that would reach zero at ``zeta * epochs``, where it stays.

    With zeta 2 it is the schedule of EDC's script for ImageNet-1K (shaoshitong/EDC).
    """
    return max(0.0, 1 - epoch / (zeta * epochs))


def two_part(epoch: int, epochs: int, zeta: float) -> float:
    """The cosine for 5/6 of the epochs, then the cosine's value there times the remaining fraction of the epochs.

    With zeta 2 the factor drops from 0.629 to 0.105 between the parts, as in the released code (shaoshitong/EDC).
    """
    if epoch <= 5 * epochs / 6:
        return zeta_cosine(epoch, epochs, zeta)
    return (1 + math.cos(5 * math.pi / (6 * zeta))) / 2 * (epochs - epoch) / epochs


def multistep(epoch: int, epochs: int, drop_at: Sequence[float] = (2 / 3, 5 / 6), drop_factor: float = 0.2) -> float:
    """``drop_factor`` ** (number of milestones passed); ``drop_at`` has the milestones as fractions of the epochs.

    Source of the defaults: vimar-gu/MinimaxDiffusion ``train.py``, after IDC.  Deviation: milestones that are not whole
    epochs are rounded up; the original rounds down.
    """
    # 0.55 * 100 is a little above 55
    return drop_factor ** sum(epoch >= fraction * epochs - 1e-9 for fraction in drop_at)


_BY_ZETA: Mapping[str, Callable[[int, int, float], float]] = {
    "cosine": zeta_cosine,
    "linear": zeta_linear,
    "two_part": two_part,
}
"""By name in a protocol's ``schedule``: (epoch from 0, epochs, zeta) to a factor on the learning rate."""


def rate_factor(protocol: EvalProtocol, epoch: int) -> float:
    """Factor on the learning rate of a protocol during one epoch, counted from 0.

    The warm-up is linear, to the full rate in its last epoch or, with ``warmup_start``, from that factor to 1 in the
    epoch after it; the schedule takes the remaining epochs.
    """
    warm, start = protocol.warmup_epochs, protocol.warmup_start
    if epoch < warm:
        return (epoch + 1) / warm if start is None else start + (1 - start) * epoch / warm
    after = epoch - warm, protocol.epochs - warm
    if protocol.schedule == "multistep":
        return multistep(*after, protocol.drop_at, protocol.drop_factor)
    return _BY_ZETA[protocol.schedule](*after, protocol.zeta)
