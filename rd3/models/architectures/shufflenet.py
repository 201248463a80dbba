"""ShuffleNetV2 for small images.

Source: the repository of CRD (Contrastive Representation Distillation; github.com/HobbitLong/RepDistiller),
``models/ShuffleNetv2.py``, which differs from torchvision's network only in its stem.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torchvision import models


def small_stem(num_classes: int, resolution: int, *, width: str = "x0_5") -> nn.Module:
    """torchvision's network behind a 1x1 stride-1 stem to 24 channels, without the max-pool."""
    network = models.get_model(f"shufflenet_v2_{width}", weights=None, num_classes=num_classes)
    network.conv1[0] = nn.Conv2d(3, 24, 1, bias=False)
    network.maxpool = nn.Identity()
    return cast(nn.Module, network)
