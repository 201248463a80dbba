"""Which layers of a network have statistics that methods match."""

from __future__ import annotations

from rd3.lazy import nn


def matched_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.BatchNorm2d]:
    """Every convolution, and every BatchNorm2d that has running statistics, in the order of ``named_modules``."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.BatchNorm2d) and module.running_mean is not None)
    }
