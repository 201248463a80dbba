"""Do the tensors of a file fit a network?  What differs, and which network they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from rd3.datasets import DatasetInfo
from rd3.errors import BadValue, ClassOrderError
from rd3.models import NETWORKS, network_info, state_shapes
from rd3.teacher.class_order import suggest_fix
from rd3.teacher.state_dicts import WeightsFile, without_counters

_FAMILIES = {
    "embedder.embedder.convolution": "a ResNet of Hugging Face's transformers",
    "embeddings.patch_embeddings.projection": "a vision transformer of Hugging Face's transformers",
    "patch_embed.proj": "a vision transformer of timm",
    "conv_stem": "an EfficientNet or MobileNet of timm",
    "visual.": "CLIP",
    "encoder.layers.encoder_layer_0": "a vision transformer of torchvision",
    "kernel:0": "TensorFlow",
}
"""Part of a tensor's name, and whose names these are."""
_OTHER_NAMES = (
    "use weights with torchvision's names, which timm's ResNets have too, or rename its tensors to these "
    "(rd3.models.build_network(...).network.state_dict() shows them)"
)


def check_fit(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    head: str,
    checkpoint: WeightsFile,
    network: str,
    info: DatasetInfo,
) -> None:
    """Raise unless names and shapes are those of the network; the error names what differs.

    ``expected``: the state of the network, and ``head`` the name of its last layer's weight.  Raises
    :class:`ClassOrderError` for another number of classes and :class:`BadValue` for another network.
    """
    has, needs = ({name: tuple(value.shape) for name, value in state.items()} for state in (tensors, expected))
    outputs = has.get(head, needs[head])
    if outputs[0] != needs[head][0] and outputs[1:] == needs[head][1:]:
        raise ClassOrderError(
            f"{checkpoint.source} is a classifier of {outputs[0]} classes, {info.name} has {info.num_classes}.",
            suggest_fix(outputs[0], info),
        )
    first = min((name for name in {*has, *needs} if has.get(name) != needs.get(name)), default=None)
    if first is None:
        return
    shapes = f"{first} is {has.get(first, 'nothing')}, expected {needs.get(first, 'nothing')}"
    fact = f"{checkpoint.source} does not fit {network}: {shapes}"
    if not set(expected) & without_counters(tensors):
        called = ", ".join(sorted(tensors)[:3])
        fact = f"{checkpoint.source} has none of the names of {network}: its tensors are called {called}"
    if better := _network_that_fits(checkpoint, network, info):
        raise BadValue(f"{fact}.", better)
    raise _known_difference(has, needs, checkpoint.source, network) or BadValue(
        f"{fact}.",
        "name the network that it was trained as, and rename its tensors to that network's where they differ",
    )


def _known_difference(
    has: Mapping[str, tuple[int, ...]], needs: Mapping[str, tuple[int, ...]], source: Path | str, network: str
) -> BadValue | None:
    """The error for names of another library, for further tensors, and for a first layer of other channels."""
    names, required = without_counters(has), without_counters(needs)
    whose = next((whose for mark, whose in _FAMILIES.items() if any(mark in name for name in names)), None)
    if whose and 2 * len(names & required) < len(needs):  # a last layer may be called the same
        first = ", ".join(sorted(names)[:2])
        return BadValue(f"{source} has the names of {whose} ({first}), not those of {network}.", _OTHER_NAMES)
    others = [name for name in names & required if has[name] != needs[name]]
    if len(others) == 1 and names == required:
        return _other_channels(others[0], has[others[0]], needs[others[0]], source)
    more = sorted(names - required)
    if not more or others or not required <= names:
        return None
    listed = f"{', '.join(more[:5])}{', ...' if len(more) > 5 else ''}"
    return BadValue(
        f"{source} has all tensors of {network} and {len(more)} more: {listed}.",
        "save it without these if they have no part in its predictions; else it is another network",
    )


def _other_channels(name: str, got: tuple[int, ...], wanted: tuple[int, ...], source: Path | str) -> BadValue | None:
    """The error for a first layer that takes images of other channels than RGB."""
    if len(got) != 4 or wanted[1] != 3 or (got[0], *got[2:]) != (wanted[0], *wanted[2:]):
        return None
    if got[1] != 1:
        return BadValue(f"{source} is of a network for images of {got[1]} channels; RD3's have 3.", "use one for RGB")
    return BadValue(
        f"{source} is of a network for grey images: {name} takes 1 channel, and RD3's images have 3.",
        f"for grey images, which RD3 repeats in three channels, save state[{name!r}] = "
        f"state[{name!r}].repeat(1, 3, 1, 1) / 3, which predicts the same",
    )


def _network_that_fits(checkpoint: WeightsFile, network: str, info: DatasetInfo) -> str:
    """The fix for weights of another network that RD3 has, or of this one for other images; else empty."""
    for name in NETWORKS.names():
        if _fits(checkpoint, name, info, info.resolution):
            return f"name the network that they fit: --network {name}"
    for side in network_info(network).resolutions:
        if side != info.resolution and _fits(checkpoint, network, info, side):
            return (
                f"use weights for {info.resolution} pixels, which {info.name} has: these are of {network} for {side} "
                "pixels, whose first layers differ"
            )
    return ""


def _fits(checkpoint: WeightsFile, network: str, info: DatasetInfo, side: int) -> bool:
    """Whether names and shapes are those of the network at this resolution; the number of classes may differ."""
    if side not in network_info(network).resolutions:
        return False
    shapes = state_shapes(network, info.num_classes, side)
    try:
        found = checkpoint.weights(shapes).tensors
    except BadValue:  # several networks of these names
        return False
    names = without_counters(shapes)
    if names != without_counters(found):
        return False
    differ = [name for name in names if tuple(found[name].shape) != shapes[name]]
    return len(differ) <= 2 and all(tuple(found[name].shape)[1:] == shapes[name][1:] for name in differ)
