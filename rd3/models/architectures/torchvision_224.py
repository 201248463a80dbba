"""torchvision's networks, unmodified and without weights, for 224 pixels."""

from __future__ import annotations

from torch import nn
from torchvision import models


def named(num_classes: int, resolution: int, *, name: str) -> nn.Module:
    """torchvision's network of that name."""
    # torchvision's Inception networks would warn about slow initialisation; none is in the table.
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network
