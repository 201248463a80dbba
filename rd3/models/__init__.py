"""Networks for teachers and students: the architecture of each name at each resolution, and how to build it.

``networks.yaml``, registered by ``table.py``, is the table, ``architectures/`` the code.  Names, notes and errors need
no import of torch.  ``extent``, ``forward_cost`` and ``state_shapes`` give size and cost without weights;
``folded`` merges batch normalisation into convolutions.
Other packages add networks with :func:`register_network` and the entry-point group ``rd3.models``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rd3.models._base import NETWORKS, Cost, Extent, Network, network_info, register_network
from rd3.models._build import build_network, extent, forward_cost, state_shapes

if TYPE_CHECKING:
    from rd3.models._folded import folded
    from rd3.models._normalised import NormalisedNetwork

__all__ = [
    "NETWORKS",
    "Cost",
    "Extent",
    "Network",
    "NormalisedNetwork",
    "build_network",
    "extent",
    "folded",
    "forward_cost",
    "network_info",
    "register_network",
    "state_shapes",
]

_WITH_TORCH = {"NormalisedNetwork": "rd3.models._normalised", "folded": "rd3.models._folded"}
"""Modules that import torch, loaded at the first use of their name."""


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module 'rd3.models' has no attribute {name!r}")
