"""The ConvNet of dataset distillation: blocks of convolution, norm, ReLU and average pooling, then one linear layer.

Sources: Dataset Condensation and DC-Bench ``networks.py`` (instance norm), RDED ``synthesize/models.py`` (batch norm).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

WIDTH = 128


def convnet(num_classes: int, resolution: int, *, depth: int, norm: Literal["batch", "instance"]) -> nn.Module:
    """``depth`` blocks of 128 channels; instance norm is a group norm of one channel a group, affine, as published."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(WIDTH if index else 3, WIDTH, 3, padding=1),
            nn.BatchNorm2d(WIDTH) if norm == "batch" else nn.GroupNorm(WIDTH, WIDTH),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    side = resolution >> depth
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            classifier=nn.Linear(WIDTH * side * side, num_classes),
        )
    )
