"""Which layers of a network have statistics that methods match, and the form of these; loads no torch."""

from __future__ import annotations

from typing import NamedTuple

from rd3.lazy import nn, torch


class Moments(NamedTuple):
    """Means and biased variances of a layer's input, per channel (D) and per tile (T, row-major)."""

    mean: torch.Tensor
    """(..., D)"""
    var: torch.Tensor
    patch_mean: torch.Tensor | None = None
    """(..., T), over all channels and pixels of a tile, a square patch of the input; None for BatchNorm layers."""
    patch_var: torch.Tensor | None = None


def matched_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.BatchNorm2d]:
    """Every convolution, and every BatchNorm2d that has running statistics, in the order of ``named_modules``."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.BatchNorm2d) and module.running_mean is not None)
    }
