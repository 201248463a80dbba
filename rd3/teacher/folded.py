"""Weights that a file holds in parts (pruning masks, weight and spectral norm), and buffers that are no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from rd3.errors import BadValue

_COUNTED = ("total_ops", "total_params")
"""Buffers that thop leaves in a network whose operations it counted."""


class Folded(NamedTuple):
    """Tensors by their full names, and sentences on what was computed or left out."""

    tensors: dict[str, torch.Tensor]
    said: tuple[str, ...]


def folded(tensors: Mapping[str, torch.Tensor]) -> Folded:
    """The tensors as a plain network names them: parts are put together as torch does in evaluation mode.

    Parts are those of ``torch.nn.utils.prune``, of ``weight_norm`` and of ``spectral_norm``, the last two in their old
    form (``weight_g``) and as parametrizations.  Raises :class:`BadValue` for other parametrizations.
    """
    left = dict(tensors)
    counted = [name for name in left if name.rpartition(".")[2] in _COUNTED and left[name].numel() == 1]
    for name in counted:
        del left[name]
    masked = _masked(left)
    normed = _weight_normed(left) + _spectrally_normed(left)
    _require_known(left)
    said = []
    if counted:
        said.append(f"{len(counted)} counters of operations (total_ops, total_params) are not weights and are ignored.")
    if masked:
        zeros, values = (sum(kind) for kind in zip(*masked, strict=True))
        said.append(
            f"The weights of {len(masked)} layers are multiplied with the file's pruning masks, which are zero for "
            f"{100 * zeros / values:.1f} % of them."
        )
    if normed:
        said.append(f"The weights of {normed} layers are computed from their weight or spectral norm, as torch does.")
    return Folded(left, tuple(said))


def _in_parts(left: Mapping[str, torch.Tensor], *forms: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """The names of weights that have a part with the first suffix of a form, and the suffixes of that form."""
    return [
        (name.removesuffix(suffixes[0]), suffixes) for suffixes in forms for name in left if name.endswith(suffixes[0])
    ]


def _masked(left: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Multiply weights with their masks, in place; returns (masked values, values) of each."""
    found = []
    for name, _suffixes in _in_parts(left, ("_mask",)):
        whole = left.get(f"{name}_orig")
        if whole is not None and whole.shape == left[f"{name}_mask"].shape:
            mask = left.pop(f"{name}_mask")
            left[name] = left.pop(f"{name}_orig") * mask.to(whole.dtype)
            found.append((int((mask == 0).sum()), mask.numel()))
    return found


def _plain_name(parametrised: str) -> str:
    """``conv.parametrizations.weight`` as the layer itself calls it: ``conv.weight``."""
    before, _parametrizations, last = parametrised.rpartition("parametrizations.")
    return before + last


def _weight_normed(left: dict[str, torch.Tensor]) -> int:
    """Compute weights from their lengths g and directions v (Salimans and Kingma, 2016), in place."""
    count = 0
    for name, (length, direction) in _in_parts(left, ("_g", "_v"), (".original0", ".original1")):
        g, v = left[name + length], left.get(name + direction)
        if v is None or not (g.ndim == 0 or _is_length(tuple(g.shape), tuple(v.shape))):
            continue
        del left[name + length], left[name + direction]
        over = [axis for axis in range(v.ndim) if not g.ndim or g.shape[axis] == 1]
        g, v = g.float(), v.float()
        left[_plain_name(name)] = v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=True))
        count += 1
    return count


def _is_length(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether a shape is that of a tensor in which some axes were reduced to one."""
    return len(shape) == len(whole) and all(side in (1, full) for side, full in zip(shape, whole, strict=True))


def _spectrally_normed(left: dict[str, torch.Tensor]) -> int:
    """Divide weights by their largest singular value, as the stored vectors estimate it, in place."""
    count = 0
    for name, parts in _in_parts(left, ("_orig", "_u", "_v"), (".original", ".0._u", ".0._v")):
        whole, u, v = (left.get(name + part) for part in parts)
        if whole is None or u is None or v is None or (len(u), len(v)) != tuple(whole.flatten(1).shape):
            continue
        for part in parts:
            del left[name + part]
        matrix = whole.float().flatten(1)
        left[_plain_name(name)] = whole.float() / (u.float() @ matrix @ v.float())
        count += 1
    return count


def _require_known(left: Mapping[str, torch.Tensor]) -> None:
    for name in left:
        before, found, last = name.rpartition(".parametrizations.")
        if found:
            weight = last.partition(".")[0]
            raise BadValue(
                f"{before}.{weight} is a parametrization that RD3 does not compute ({name}).",
                "save the network after torch.nn.utils.parametrize.remove_parametrizations(layer, "
                f"{weight!r}) for each such layer",
            )
