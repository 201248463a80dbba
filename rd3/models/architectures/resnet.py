"""ResNets with torchvision's parameter names for every stem.

Sources: torchvision ``models/resnet.py``; the small stem as in RDED ``synthesize/utils.py`` and SRe2L's CIFAR code.
"""

from __future__ import annotations

from typing import Literal, cast

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet


def small_stem(num_classes: int, resolution: int, *, depth: int) -> nn.Module:
    """A ResNet for small images: the 7x7 stride-2 stem is replaced by 3x3 stride 1, and the max-pool is removed.

    The new convolution has torch's default initialisation, as in the authors' code.
    """
    network: nn.Module = models.get_model(f"resnet{depth}", weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def narrow(num_classes: int, resolution: int, *, width: int, stem: Literal["small", "large"]) -> nn.Module:
    """ResNet-18 with ``width`` channels in stage one and 2, 4, 8 times as many later; initialised as in torchvision."""
    network = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    if stem == "small":
        network.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    else:
        network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.inplanes = width
    network.layer1 = network._make_layer(BasicBlock, width, 2)
    network.layer2 = network._make_layer(BasicBlock, 2 * width, 2, stride=2)
    network.layer3 = network._make_layer(BasicBlock, 4 * width, 2, stride=2)
    network.layer4 = network._make_layer(BasicBlock, 8 * width, 2, stride=2)
    network.fc = nn.Linear(8 * width, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return cast(nn.Module, network)
