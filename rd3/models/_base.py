"""Networks before they are built: a name, a summary, and a note for every supported resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from rd3.errors import UnknownName, Unsupported
from rd3.lazy import nn
from rd3.registry import Registry, did_you_mean

RESOLUTIONS = (32, 64, 224)
"""Sides of images, in pixels, for which timm's networks are offered."""
TIMM = "timm:"
"""Prefix of the names of timm's networks."""


@dataclass(frozen=True)
class Cost:
    """Compute and memory traffic; costs can be added, subtracted and multiplied by a number."""

    flops: float = 0.0
    """Floating-point operations; a multiply-add counts as two."""
    bytes: float = 0.0
    """Memory traffic of layers in bytes, for fp32 activations, without weights (read once per batch)."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.flops - other.flops, self.bytes - other.bytes)

    def __rmul__(self, times: float) -> Cost:
        return Cost(times * self.flops, times * self.bytes)


class Extent(NamedTuple):
    """Size of a network and of its layer statistics on disk."""

    values: int
    """Number of saved values: parameters and buffers."""
    channels: int
    """Total number of input channels of all convolutions and batch norms, over which statistics are collected."""


@dataclass(frozen=True)
class Network:
    """A network that can be built."""

    name: str
    summary: str
    resolutions: Mapping[int, str]
    """Side of images in pixels to a note on the architecture used there."""
    build: Callable[[int, int], nn.Module]
    """``build(num_classes, resolution)`` returns the bare module, without normalisation."""


NETWORKS: Registry[Network] = Registry("network", "rd3.models")
"""The networks of the table and of plugins; in addition, ``timm:<name>`` is any network of timm."""


def register_network(
    name: str, *, summary: str, resolutions: Mapping[int, str]
) -> Callable[[Callable[[int, int], nn.Module]], Callable[[int, int], nn.Module]]:
    """Decorator: register a builder ``(num_classes, resolution) -> module``; the module must end in a linear layer."""

    def register(build: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
        NETWORKS.register(name)(Network(name, summary, dict(resolutions), build))
        return build

    return register


def network_info(name: str, resolution: int | None = None) -> Network:
    """The network called ``name``; raises :class:`UnknownName`, or :class:`Unsupported` at that resolution."""
    network = _timm(name) if name.startswith(TIMM) else NETWORKS.get(name)
    if resolution is not None and resolution not in network.resolutions:
        sides = ", ".join(str(side) for side in sorted(network.resolutions))
        raise Unsupported(f"Network {name} does not support {resolution} pixels, only {sides}.", "use another network")
    return network


def _timm(name: str) -> Network:
    import timm

    from rd3.models.architectures import timm_any

    short = name.removeprefix(TIMM)
    if not timm.is_model(short):
        hint = did_you_mean(short, timm.list_models())
        raise UnknownName(f"timm has no network {short!r}.", hint if len(hint) < 200 else "see timm.list_models()")
    note = "as defined by timm; img_size is passed to networks with a fixed input size, the patch size stays the same"
    summary, build = f"{short} of the timm library, without weights", partial(timm_any.named, name=short)
    return Network(name, summary, dict.fromkeys(RESOLUTIONS, note), build)
