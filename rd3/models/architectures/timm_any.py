"""Networks of the timm library, without weights."""

from __future__ import annotations

from typing import Any, cast

import timm
from torch import nn

from rd3.errors import Unsupported


def named(num_classes: int, resolution: int, *, name: str, **options: Any) -> nn.Module:
    """timm's network; ``img_size`` is passed if it takes one, as are ``options`` such as patch or window size."""
    if options or _takes_img_size(name):
        options["img_size"] = resolution
    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise Unsupported(f"timm cannot build {name} at {resolution} pixels: {error}", "use another network") from None
    if not isinstance(network.get_classifier(), nn.Linear):
        raise Unsupported(f"timm's {name} does not end in a linear layer.", "use another network")
    return cast(nn.Module, network)


def efficientnet_stride_one(num_classes: int, resolution: int, *, name: str) -> nn.Module:
    """An EfficientNet whose first convolution has stride 1: total stride 16 instead of 32."""
    network = named(num_classes, resolution, name=name)
    stem = network.get_submodule("conv_stem")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return network


def _takes_img_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)
