"""Wide ResNets with pre-activation blocks.

Source: Zagoruyko and Komodakis (2016), as in ``models/wrn.py`` of CRD (Contrastive Representation Distillation;
github.com/HobbitLong/RepDistiller); dropout 0, average pooling adaptive.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """norm, ReLU, 3x3, norm, ReLU, 3x3; if the shape changes, the shortcut is a 1x1 of the *activated* input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        out: torch.Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(num_classes: int, resolution: int, *, depth: int, widen: int) -> nn.Module:
    """Three stages of ``(depth - 4) / 6`` blocks with 16, 32 and 64 times ``widen`` channels; strides 1, 2, 2."""
    blocks = (depth - 4) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    channels = 16
    for outputs, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        for index in range(blocks):
            layers.append(Block(channels, outputs, stride if index == 0 else 1))
            channels = outputs
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier = nn.Linear(channels, num_classes)
    network = nn.Sequential(*layers, classifier)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(classifier.bias)
    return network
