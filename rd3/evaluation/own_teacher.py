"""A user's own network as the teacher of :func:`rd3.evaluate`: fed as it was trained, and tested once."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from rd3.augment import to_unit
from rd3.datasets import Dataset
from rd3.device import usable_device
from rd3.errors import BadValue, RD3Error, ends_the_process
from rd3.evaluation.student import Progress
from rd3.known_constants import KNOWN, Constants, option, spelled, stated_constants
from rd3.models import NormalisedNetwork
from rd3.seeding import ForkedRNG
from rd3.teacher.artifact import predict, verification_list
from rd3.teacher.plausibility import (
    BetterConstants,
    better_constants,
    check_above_chance,
    check_finite,
    check_not_permuted,
    check_outputs,
)
from rd3.teacher.steadiness import check_steady, observed

NAME = "The teacher"
_SHAPE_IMAGES = 32
"""Images on which the form of the outputs is checked."""
_UNIT = KNOWN["none"]
_CALLER = 4
"""Stack level of a warning in :func:`own_teacher` at the line that calls ``evaluate``, which a decorator wraps."""
_ORDER_FIX = (  # check_not_permuted puts the order in place of {order}
    "put the rows of its last layer in the order of dataset.info.class_ids: layer.weight[{order}], and its bias"
)
_CHANCE_FIX = (
    "pass the constants of its training, such as normalisation='imagenet', and check its weights; allow_chance=True "
    "uses it all the same"
)


def own_teacher(
    teacher: nn.Module,
    dataset: Dataset,
    normalisation: Constants | None,
    *,
    allow_chance: bool,
    device: torch.device | str,
    progress: Progress,
    batch_statistics: bool = False,
) -> nn.Module:
    """A copy of ``teacher`` that takes pixels (B, 3, H, W) in [0, 1], in fp32 and eval mode on ``device``.

    It is tested on the first validation images, at most a thousand; ``progress`` gets the accuracy.  Without
    ``normalisation`` it is taken to accept pixels in [0, 1].  ``batch_statistics``: its batch norms are used with the
    statistics of the batch.

    Raises :class:`BadValue` for what is not a network or does not return logits (B, C), for logits that depend on
    random numbers or, unless ``batch_statistics``, on the other images of the batch, for values that are not finite,
    for a network that is not better than chance unless ``allow_chance``, and, where no normalisation is stated, for one
    that is better with known constants; :class:`ClassOrderError` for classes that are permuted.
    """
    device = usable_device(device)
    given = (
        _UNIT if normalisation is None else stated_constants(normalisation, dataset.info.normalisation, "normalisation")
    )
    network = _copied(teacher).to(device)
    on_pixels = network if given == _UNIT else NormalisedNetwork(network, given).eval().to(device)
    places = range(min(_SHAPE_IMAGES, len(dataset.labels("validation"))))
    pixels = to_unit(dataset.images("validation", places)).to(device)
    with observed() as called:  # notes the modules that are called, for messages, and restores their buffers
        _check_logits(on_pixels, pixels, dataset)
        check_steady(NAME, lambda some: _logits(on_pixels, some), pixels, called, batch_statistics=batch_statistics)
    tested = predict(on_pixels, dataset, "validation", verification_list(dataset), device=device)
    check_outputs(NAME, tested)
    exchanged = check_not_permuted(NAME, tested, on_pixels, dataset, device, _ORDER_FIX)
    better = better_constants(network, given, dataset, device)
    fix = f"{_adapted(better)} if it was trained so" if better else _CHANCE_FIX
    if better and normalisation is None:
        expected = "pixels in the order BGR" if better.bgr_layer else "normalised pixels"
        raise BadValue(
            f"{NAME} seems to expect {expected}: {better.accuracies}.",
            f"{fix}, or normalisation='none' if it accepts pixels in [0, 1]",
        )
    if not allow_chance:
        check_above_chance(NAME, tested, dataset, better, fix)
    if exchanged:
        warnings.warn(exchanged, stacklevel=_CALLER)
    if better and better.worth_reporting(stated=True):
        warnings.warn(f"{NAME} may need another input: {better.accuracies}; {fix}.", stacklevel=_CALLER)
    fed_with = "pixels in [0, 1]" if given == _UNIT else f"pixels normalised with {spelled(given)}"
    progress(0.0, f"teacher: {tested.top1_pct:.1f} % of {len(tested.labels)} validation images, on {fed_with}")
    return on_pixels


def check_class_count(logits: torch.Tensor, dataset: Dataset) -> None:
    """Raise :class:`BadValue` for logits (B, C) of a teacher of another dataset, with another number of classes."""
    if logits.shape[1] != dataset.info.num_classes:
        raise BadValue(
            f"{NAME} has {logits.shape[1]} classes, {dataset.info.name} has {dataset.info.num_classes}.",
            "use a teacher of this dataset",
        )


def identity(teacher: nn.Module, normalisation: Constants | None) -> list[torch.Tensor]:
    """The tensors that identify a teacher: its state dict, and the constants if they were stated.

    No state dict of a :class:`NormalisedNetwork` has these; RD3's own teachers keep the digests of their weights alone.
    """
    state = [value for value in teacher.state_dict().values() if isinstance(value, torch.Tensor)]
    if normalisation is None or not isinstance(teacher, NormalisedNetwork):
        return state
    return [*state, teacher.mean, teacher.std]


def _adapted(better: BetterConstants) -> str:
    """How to feed the teacher as :class:`BetterConstants` says."""
    constants = f"pass normalisation={option(better.normalisation)!r}"
    if better.bgr_layer is None:
        return constants
    weight = f"teacher.get_parameter({better.bgr_layer!r})"
    return f"reverse its input channels, {weight}.data = {weight}.data.flip(1), and {constants}"


def _copied(teacher: Any) -> nn.Module:
    """A frozen fp32 copy on its own device."""
    if not isinstance(teacher, nn.Module):
        raise BadValue(
            f"{NAME} is of type {type(teacher).__name__}, expected a torch.nn.Module that returns logits.",
            "load its weights into its network, or import it (rd3 teacher import) and use Workspace().teacher",
        )
    state = {name: value for name, value in teacher.state_dict().items() if isinstance(value, torch.Tensor)}
    check_finite(NAME, state.items())
    try:
        own = copy.deepcopy(teacher)
    except Exception as error:  # modules may hold anything, such as tensors of a graph, or a lock
        raise BadValue(f"{NAME} cannot be copied: {error}", "pass a network without tensors of a graph") from None
    return own.float().eval().requires_grad_(False)


def _logits(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What a network returns; raises for one that fails."""
    try:
        with torch.inference_mode():
            returned: torch.Tensor = network(pixels)
            return returned
    except Exception as error:
        if ends_the_process(error) or isinstance(error, RD3Error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise BadValue(
            f"{NAME} fails on pixels of shape {tuple(pixels.shape)}: {type(error).__name__}: {reason}.",
            f"use a network for {pixels.shape[-1]} pixels that takes one tensor",
        ) from None


def _check_logits(network: nn.Module, pixels: torch.Tensor, dataset: Dataset) -> None:
    """Raise for a network that fails on pixels of the dataset, or returns something else than (B, C)."""
    count = len(pixels)
    with ForkedRNG(pixels.device, 0, "logits"):
        logits = _logits(network, pixels)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != count:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"type {type(logits).__name__}"
        expected = f"expected logits ({count}, C) for {count} images"
        raise BadValue(f"{NAME} returns {found}, {expected}.", "return its logits alone")
    check_class_count(logits, dataset)
    if bool(((logits >= 0) & (logits <= 1)).all()):
        if torch.allclose(logits.float().sum(1), torch.ones(count, device=logits.device), atol=1e-2):
            raise BadValue(f"{NAME} returns probabilities, expected logits.", "leave out its softmax")
        warnings.warn(f"{NAME} returns only values in [0, 1], which are unlikely to be logits.", stacklevel=_CALLER + 1)
