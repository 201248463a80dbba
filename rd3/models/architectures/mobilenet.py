"""MobileNetV2 of half width for small images.

Source: the repository of CRD (Contrastive Representation Distillation; github.com/HobbitLong/RepDistiller),
``models/mobilenetv2.py`` (``mobile_half``): channels are halved without rounding to multiples of eight, activations are
ReLU, and the first block also has an expanding 1x1 convolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

# (expansion, channels at full width, repeats, stride of the first)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 depthwise, linear 1x1; residual if the shape stays the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_conv(inputs, hidden, 1),
            *_conv(hidden, hidden, 3, stride=stride, groups=hidden),
            *_conv(hidden, outputs, 1)[:2],
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        return x + out if self.residual else out


def _conv(inputs: int, outputs: int, side: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def half_width(num_classes: int, resolution: int) -> nn.Module:
    """A 3x3 stride-2 stem to 16 channels, seven stages at half width, 1x1 to 1,280, average pooling, linear."""
    layers: list[nn.Module] = [*_conv(3, 16, 3, stride=2)]
    channels = 16
    for expansion, full, repeats, stride in STAGES:
        widths = [channels, *[full // 2] * repeats]
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
        channels = full // 2
    layers += [*_conv(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier = nn.Linear(1280, num_classes)
    network = nn.Sequential(*layers, classifier)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return network
