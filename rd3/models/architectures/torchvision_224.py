"""torchvision's networks, unmodified and without weights: what every name means at 224 pixels."""

from __future__ import annotations

from torch import nn
from torchvision import models


def named(num_classes: int, resolution: int, *, name: str) -> nn.Module:
    """torchvision's network of that name."""
    # Its inception-like networks would warn of a slow start; none is in the table.
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network
