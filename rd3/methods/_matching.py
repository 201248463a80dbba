"""The statistics matching loss of G-VBSM and EDC: distance of a batch's layer statistics from collected ones.

Source: shaoshitong/G_VBSM_Dataset_Condensation ``Branch_*/recover/utils.py``; shaoshitong/EDC ``Branch_*/recover``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from rd3.errors import DataCorrupt
from rd3.lazy import nn, torch
from rd3.methods._recovery import LayerLoss
from rd3.models._matched import Moments, matched_layers

if TYPE_CHECKING:
    from rd3.layer_statistics import LayerStatistics

Targets = Mapping[str, Moments]
"""Target moments of each layer, by its name."""


def targets_of_all(network: torch.nn.Module, statistics: LayerStatistics) -> dict[str, Moments]:
    """Moments of all training images: collected ones for convolutions, running statistics for BatchNorm layers."""
    return {
        name: Moments._make((layer.running_mean, layer.running_var, None, None))
        if isinstance(layer, nn.BatchNorm2d)
        else _of_layer(statistics.whole, name, statistics)
        for name, layer in matched_layers(network).items()
    }


def targets_of_labels(
    network: torch.nn.Module, statistics: LayerStatistics, labels: torch.Tensor
) -> dict[str, Moments]:
    """Mean of the class moments over ``labels``, (B,) int64."""
    return {
        name: Moments._make(
            None if values is None else values[labels].mean(0)
            for values in _of_layer(statistics.classes, name, statistics)
        )
        for name in matched_layers(network)
    }


def _of_layer(part: Targets, name: str, statistics: LayerStatistics) -> Moments:
    """The moments of a layer in ``part`` of the statistics; raises :class:`DataCorrupt` if it is not there."""
    if name not in part:
        raise DataCorrupt(
            f"The statistics of teacher {statistics.teacher[:12]} have no layer {name!r}, its network has.",
            "collect the statistics again",
        )
    return part[name]


class MatchingLoss(LayerLoss):
    """Distance of a batch's moments from targets, over all convolutions and BatchNorm2d layers of a bare network.

    For each layer, in ``named_modules`` order, it sums the L2 norms of (target - moment) over channel means and biased
    variances of its *input*, and for convolutions also over those of tiles; the first layer is multiplied by
    ``first_multiplier``.  For several targets it is their weighted sum.  A moment enters as its moving average over
    passes, which starts at zero, with the gradient of the batch: ``A <- ema A + (1 - ema) a``, then
    ``A + a - stopgrad(a)``.

    Use it as a context manager around one forward pass, after which :meth:`value` is the loss; moving averages persist
    with the object.  In each pass, each convolution is left out with probability ``drop_rate``, drawn from ``stream``.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        targets: Sequence[tuple[float, Targets]],
        *,
        patch: int,
        first_multiplier: float,
        ema: float,
        drop_rate: float = 0.0,
        stream: torch.Generator | None = None,
    ):
        super().__init__(matched_layers(network), first_multiplier)
        self.convolutions = [name for name, layer in self.layers.items() if isinstance(layer, nn.Conv2d)]
        self.targets = targets
        self.patch, self.ema, self.drop_rate, self.stream = patch, ema, drop_rate, stream
        self._averages: dict[str, list[torch.Tensor]] = {}

    def measured(self) -> list[str]:
        if not self.drop_rate:
            return list(self.layers)
        chances = torch.rand(len(self.convolutions), generator=self.stream).tolist()
        dropped = {name for name, chance in zip(self.convolutions, chances, strict=True) if chance < self.drop_rate}
        return [name for name in self.layers if name not in dropped]

    def term(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        from rd3.methods._moments import moments_of_batch

        measured = moments_of_batch(maps, self.patch if name in self.convolutions else None)
        moments = [values for values in measured if values is not None]
        past: Sequence[torch.Tensor | float] = self._averages.get(name) or [0.0] * len(moments)
        pairs = zip(past, moments, strict=True)
        self._averages[name] = [self.ema * before + (1 - self.ema) * now.detach() for before, now in pairs]
        entering = [average + now - now.detach() for average, now in zip(self._averages[name], moments, strict=True)]
        distances = (weight * _distance(target[name], entering) for weight, target in self.targets)
        return cast("torch.Tensor", sum(distances))


def _distance(target: Moments, moments: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the L2 norms of the differences; ``moments`` of BatchNorm layers, or targets, may lack those of tiles."""
    pairs = zip(target, moments, strict=False)
    return cast("torch.Tensor", sum((wanted - got).norm() for wanted, got in pairs if wanted is not None))
