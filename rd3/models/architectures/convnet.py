"""The ConvNet of dataset distillation: blocks of convolution, norm, ReLU and average pooling, then one linear layer.

Sources: Dataset Condensation and DC-Bench ``networks.py`` (instance norm), RDED ``synthesize/models.py`` (batch norm).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn


def convnet(
    num_classes: int, resolution: int, *, depth: int, norm: Literal["batch", "instance"], width: int = 128
) -> nn.Module:
    """``depth`` blocks of ``width`` channels; instance norm is an affine group norm with one channel per group."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(width if index else 3, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    side = resolution >> depth
    classifier = nn.Linear(width * side * side, num_classes)
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=classifier))
