"""AlexNet for small images.  Source: DC-Bench ``networks.py``."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def small(num_classes: int, resolution: int) -> nn.Module:
    """Five convolutions, three max-pools, one linear layer on 192 maps of an eighth of the side."""
    side = resolution // 8
    features = nn.Sequential(
        *(nn.Conv2d(3, 128, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    )
    classifier = nn.Linear(192 * side * side, num_classes)
    return nn.Sequential(OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier))
