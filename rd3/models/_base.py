"""What a network is before it is built: a name, a summary, and a note for every resolution it exists at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rd3.errors import UnknownName, Unsupported
from rd3.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from torch import nn

RESOLUTIONS = (32, 64, 224)
TIMM = "timm:"


@dataclass(frozen=True)
class Cost:
    """Work that a device has to do; costs add up and can be taken so many times."""

    flops: float = 0.0
    """Floating-point operations; a multiply-add counts as two."""
    bytes: float = 0.0
    """What layers read and write in memory, as fp32, without weights."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.flops - other.flops, self.bytes - other.bytes)

    def __rmul__(self, times: float) -> Cost:
        return Cost(times * self.flops, times * self.bytes)


class Extent(NamedTuple):
    """How large a network is where it is kept."""

    values: int
    """Numbers that are saved with it: parameters, and what layers keep besides them."""
    channels: int
    """Of the inputs of its convolutions and batch norms, all layers together: what statistics are of."""


@dataclass(frozen=True)
class NetworkInfo:
    """What people see of a network: ``resolutions`` maps a side in pixels to what the name means there."""

    name: str
    summary: str
    resolutions: Mapping[int, str]


@dataclass(frozen=True)
class Network:
    """A registered network; ``build(num_classes, resolution)`` gives the bare module, unnormalised."""

    info: NetworkInfo
    build: Callable[[int, int], nn.Module]


NETWORKS: Registry[Network] = Registry("network", "rd3.models")


def register_network(
    name: str, *, summary: str, resolutions: Mapping[int, str]
) -> Callable[[Callable[[int, int], nn.Module]], Callable[[int, int], nn.Module]]:
    """File a builder ``(num_classes, resolution) -> module`` under a name; the module ends in a linear layer."""

    def file_it(build: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
        NETWORKS.register(name)(Network(NetworkInfo(name, summary, dict(resolutions)), build))
        return build

    return file_it


def network_names() -> list[str]:
    """All names of the table and of plugins, sorted; besides these, ``timm:<name>`` is any network of timm."""
    return NETWORKS.names()


def find(name: str, resolution: int | None = None) -> Network:
    """The network called ``name``; raises :class:`UnknownName`, or :class:`Unsupported` at that resolution."""
    network = _timm(name) if name.startswith(TIMM) else NETWORKS.get(name)
    known = network.info.resolutions
    if resolution is not None and resolution not in known:
        sides = ", ".join(str(side) for side in sorted(known))
        raise Unsupported(f"Network {name} has no form at {resolution} pixels, only at {sides}.", "use another network")
    return network


def network_info(name: str) -> NetworkInfo:
    """Summary and notes of one network."""
    return find(name).info


def _timm(name: str) -> Network:
    import timm

    from rd3.models.architectures import timm_any

    short = name.removeprefix(TIMM)
    if not timm.is_model(short):
        hint = did_you_mean(short, timm.list_models())
        raise UnknownName(f"timm has no network {short!r}.", hint if len(hint) < 200 else "see timm.list_models()")
    note = "as timm defines it; img_size is passed to networks of a fixed input size, their patch size stays"
    info = NetworkInfo(name, f"{short} of the timm library, without weights", dict.fromkeys(RESOLUTIONS, note))
    return Network(info, lambda num_classes, resolution: timm_any.named(num_classes, resolution, name=short))
