"""Is a network in eval mode a function of one image?  Dropout that stays on, and statistics of the batch."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from rd3.errors import BadValue
from rd3.seeding import ForkedRNG

ROUNDING = 2.0**-7
"""Logits that differ by this share of the largest differ by more than rounding.

Roundings of random sign add up as a random walk: over 256 layers to 16 times the unit roundoff.  It is 2^-11 for TF32,
the coarsest type in which devices compute in fp32; in fp32 itself (2^-24) the sum is 2^-20.
"""
_ASKED, _FEW = 8, 4
"""Number of times that the same few images are asked; more than twice, as layers may be dropped for a whole batch."""


class Called:
    """The modules that were called in :func:`observed`."""

    def __init__(self) -> None:
        self.in_train_mode = False
        """Whether one of them was in train mode."""
        self._seen: dict[int, nn.Module] = {}
        self._buffers: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]] = []

    def before(self, module: nn.Module) -> None:
        """Note a module's mode and its buffers before its first call."""
        self.in_train_mode |= module.training
        for one in module.modules() if id(module) not in self._seen else ():
            if id(one) not in self._seen:
                self._seen[id(one)] = one
                named = one.named_buffers(recurse=False)
                self._buffers += [(one, name, buffer, buffer.detach().clone()) for name, buffer in named]

    @torch.inference_mode()
    def restore(self) -> None:
        """Give every buffer its first value."""
        for module, name, buffer, value in self._buffers:
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def observed() -> Iterator[Called]:
    """Inside ``with``, the modules that this thread calls are noted; their buffers are restored afterwards.

    Modules in train mode that a network holds in a list or a function are the caller's own, and change when called.
    """
    called, thread = Called(), threading.get_ident()

    def note(module: nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == thread:
            called.before(module)

    handle = register_module_forward_pre_hook(note)
    try:
        with warnings.catch_warnings():  # what torch.compile says of the hook
            warnings.filterwarnings("ignore", "Using `torch.compile|Dynamo does not know")
            yield called
    finally:
        handle.remove()
        called.restore()


def check_steady(
    name: str,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    called: Called,
    *,
    batch_statistics: bool = False,
) -> None:
    """Raise :class:`BadValue` for logits that depend on random numbers, or on the other images of the batch.

    ``logits_of`` gives (B, C) of ``pixels`` (B, 3, H, W) in [0, 1] in an :func:`observed` block, whose modules are
    ``called``.  ``batch_statistics``: the second is meant to be so.  Torch's global generators are left as they were.
    """
    few = pixels[:_FEW]
    asked = []
    for seed in range(_ASKED):
        with ForkedRNG(pixels.device, seed, "steadiness"):
            asked.append(logits_of(few))
    changed = max(_change(asked[0], again) for again in asked[1:])
    if changed > ROUNDING:
        cause = "dropout in train mode" if called.in_train_mode else "dropout that is always on"
        raise _unsteady(
            f"{name} returns other logits for the same images each time", changed, cause, called,
            "apply dropout only where self.training is true: F.dropout(x, p, self.training)",
        )  # fmt: skip
    if batch_statistics:
        return
    with ForkedRNG(pixels.device, 0, "steadiness"):
        black = torch.zeros_like(pixels)
        alone, among = logits_of(pixels), logits_of(torch.cat([black, pixels]))[len(pixels) :]
    changed = _change(alone, among)
    if changed > ROUNDING:
        cause = f"batch norms {'in train mode' if called.in_train_mode else 'without running statistics'}"
        raise _unsteady(
            f"{name} returns other logits for the same images where others are in the batch", changed, cause, called,
            "train it with running statistics (track_running_stats=True), or another teacher; a protocol with "
            "teacher_mode 'batch' takes it as it is",
        )  # fmt: skip


def _unsteady(fact: str, changed: float, cause: str, called: Called, fix: str) -> BadValue:
    reach = ", which .eval() does not reach" if called.in_train_mode else ""
    return BadValue(
        f"{fact}, by up to {100 * changed:.1f} % of the largest: the likely cause is {cause}{reach}.",
        "call .eval() on every network that it holds in a list or a function, and leave out a train() of its own"
        if called.in_train_mode
        else fix,
    )


def _change(first: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit; 0 where that is 0, and for values that are not finite."""
    difference, largest = (first - other).abs().max(), torch.maximum(first.abs().max(), other.abs().max())
    share = float(difference / largest)
    return 0.0 if math.isnan(share) else share
