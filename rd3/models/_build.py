"""Build networks by name, and compute their size and cost."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rd3.errors import Unsupported
from rd3.lazy import nn, torch
from rd3.models._base import Cost, Extent, network_info
from rd3.models._matched import matched_layers
from rd3.recipe import Normalisation
from rd3.seeding import generator, scoped

if TYPE_CHECKING:
    from rd3.models._normalised import NormalisedNetwork


def build_network(
    name: str, num_classes: int, resolution: int, normalisation: Normalisation, stream: torch.Generator | None = None
) -> NormalisedNetwork:
    """Build a network that takes (B, 3, H, W) in [0, 1] and normalises internally; on the CPU, in train mode.

    Weights are initialised by the generator ``stream``; if None from a fixed seed, for callers that overwrite them.
    Raises :class:`UnknownName`, or :class:`Unsupported` if the network does not support this resolution.
    """
    from rd3.models._normalised import NormalisedNetwork

    network = network_info(name, resolution)
    with scoped(stream if stream is not None else generator(0, "init")):
        return NormalisedNetwork(network.build(num_classes, resolution), normalisation)


@functools.cache
def _on_meta(name: str, num_classes: int, resolution: int) -> nn.Module:
    """The network without its normalisation, on the meta device, which needs no memory."""
    network = network_info(name, resolution)
    with scoped(generator(0, "init")), torch.device("meta"):
        # Without gradients: torch's counter of operations fails on parameters that are the input of a layer.
        return network.build(num_classes, resolution).eval().requires_grad_(False)


def state_shapes(name: str, num_classes: int, resolution: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state dict; needs no memory for it."""
    return {key: tuple(value.shape) for key, value in _on_meta(name, num_classes, resolution).state_dict().items()}


def extent(name: str, num_classes: int, resolution: int) -> Extent:
    """Number of values in a network's state dict, and of channels that have layer statistics."""
    network = _on_meta(name, num_classes, resolution)
    layers = matched_layers(network).values()
    channels = (layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_features for layer in layers)
    return Extent(sum(tensor.numel() for tensor in network.state_dict().values()), sum(channels))


@functools.cache
def forward_cost(name: str, num_classes: int, resolution: int) -> Cost:
    """Cost of one image's forward pass: FLOPs of convolutions and matrix products, memory traffic of all layers.

    Raises :class:`Unsupported` for a network that fails at this resolution, such as one that shrinks images too often.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from rd3.models._traffic import Traffic

    network = _on_meta(name, num_classes, resolution)

    def counted(images: int) -> Cost:
        pixels = torch.empty(images, 3, resolution, resolution, device="meta")
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, Traffic() as traffic:
            try:
                network(pixels)
            except (AssertionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
                message = f"Network {name} fails on images of {resolution} pixels: {reason}."
                raise Unsupported(message, "use another network") from None
        return Cost(counter.get_total_flops(), traffic.bytes)

    return counted(2) - counted(1)  # the cost of one more image, as weights are read once per batch
