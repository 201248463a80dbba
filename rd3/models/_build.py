"""From a name to a module, its size and its cost."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rd3.models._base import Cost, Extent, find
from rd3.recipe import Normalisation
from rd3.seeding import generator, scoped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rd3.models._normalised import NormalisedNetwork


def build_network(
    name: str,
    num_classes: int,
    resolution: int,
    normalisation: Normalisation,
    stream: torch.Generator | None = None,
) -> NormalisedNetwork:
    """A network that takes pixels in [0, 1], (B, 3, H, W), and normalises them itself; on the CPU, in train mode.

    Weights are drawn on ``stream``; without one they come from a fixed stream, for those who load weights next.
    """
    from rd3.models._normalised import NormalisedNetwork

    network = find(name, resolution)
    with scoped(stream if stream is not None else generator(0, "init")):
        return NormalisedNetwork(network.build(num_classes, resolution), normalisation)


@functools.cache
def _on_meta(name: str, num_classes: int, resolution: int) -> nn.Module:
    """The bare network without storage: for counting."""
    import torch

    network = find(name, resolution)
    with scoped(generator(0, "init")), torch.device("meta"):
        return network.build(num_classes, resolution).eval()


def parameter_count(name: str, num_classes: int, resolution: int) -> int:
    """Trainable parameters."""
    return sum(weight.numel() for weight in _on_meta(name, num_classes, resolution).parameters())


def extent(name: str, num_classes: int, resolution: int) -> Extent:
    """What a network and its statistics are on the disk."""
    from torch import nn

    from rd3.layer_statistics import matched_layers

    network = _on_meta(name, num_classes, resolution)
    layers = matched_layers(network).values()
    channels = (layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_features for layer in layers)
    return Extent(sum(tensor.numel() for tensor in network.state_dict().values()), sum(channels))


@functools.cache
def forward_cost(name: str, num_classes: int, resolution: int) -> Cost:
    """One image's forward pass: operations of convolutions and matrix products, and the traffic of every layer."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rd3.models._traffic import Traffic

    network = _on_meta(name, num_classes, resolution)

    def counted(images: int) -> Cost:
        pixels = torch.empty(images, 3, resolution, resolution, device="meta")
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, Traffic() as traffic:
            network(pixels)
        return Cost(counter.get_total_flops(), traffic.bytes)

    return counted(2) - counted(1)  # what an image adds: weights are read once a batch
