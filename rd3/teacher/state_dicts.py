"""Find the weights of a network in a checkpoint written elsewhere: wrappers, prefixes and things beside them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rd3.errors import BadValue, DataCorrupt
from rd3.inputs.torch_files import read_torch_file
from rd3.recipe import Normalisation
from rd3.teacher.folded import folded

COUNTER = "num_batches_tracked"
"""Buffer of batch norms that changes no prediction; files from before torch 0.4 lack it."""
SAVE = "save the weights where they come from: torch.save(network.state_dict(), FILE)"
_RENAMED = {"linear": "fc", "shortcut": "downsample"}
"""Names in kuangliu/pytorch-cifar of layers that are the same in torchvision's ResNets."""
_BESIDE = ("criterion", "loss", "loss_fn", "n_averaged")
"""Parts of a saved training that are no layers."""
_CONSTANTS = {"mean": r"mean$|(?:^|\.)mu$", "std": r"std$|(?:^|\.)sigma$"}
"""Names of the constants of a normalising layer (``mu`` and ``sigma``: RobustBench)."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.")
"""Part of a checkpoint in several files, as Hugging Face's libraries name it."""
_DEPTH = 8
"""Limit on the nesting of a file's entries."""


class Weights(NamedTuple):
    """A state dict in the names of a network."""

    tensors: dict[str, torch.Tensor]
    normalisation: Normalisation | None
    """Of tensors of three numbers called mean and std, or mu and sigma: perhaps of a layer for pixels in [0, 1]."""
    said: tuple[str, ...]
    """Sentences on what of the file was computed or left out."""


class _Tensor(NamedTuple):
    container: tuple[str, ...]
    name: str
    value: torch.Tensor

    @property
    def prefix(self) -> str:
        return "".join(f"{part}." for part in self.container)

    @property
    def full(self) -> str:
        return self.prefix + self.name


class WeightsFile:
    """The tensors of a file, in which the weights of a network are looked for."""

    def __init__(self, source: Path | str, found: Mapping[Any, Any] | list[Any] | tuple[Any, ...]):
        """Raises :class:`DataCorrupt` if there is no tensor in ``found``; ``source`` is its name in messages."""
        self.source = source
        parts: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
        for one in _tensors(found):
            parts.setdefault(one.container, {})[one.name] = one.value
        plain = {container: folded(tensors) for container, tensors in parts.items()}
        if not any(one.tensors for one in plain.values()):
            raise DataCorrupt(f"{source} holds no state dict{_instead(found)}.", SAVE)
        self._said = tuple(dict.fromkeys(sentence for one in plain.values() for sentence in one.said))
        self._tensors = [
            _Tensor(container, name, value) for container, one in plain.items() for name, value in one.tensors.items()
        ]

    @classmethod
    def open(cls, path: Path) -> WeightsFile:
        """Read a safetensors file, or one by ``torch.save`` with plain tensors.

        Raises :class:`DataMissing` or :class:`DataCorrupt` for a file that cannot be read or holds no tensors, and
        :class:`BadValue` for the index or a part of a checkpoint in several files.
        """
        part = _PART.search(path.name)
        if path.name.endswith(".index.json") or (part is not None and int(part[1]) > 1):
            what = f"one of {int(part[1])} parts" if part else "the index"
            raise BadValue(
                f"{path.name} is {what} of a checkpoint in several files, and RD3 reads one file.",
                "save it as one file where it comes from, in transformers: model.save_pretrained(FOLDER, "
                "max_shard_size='100GB')",
            )
        return cls(path, read_torch_file(path, "a state dict", SAVE))

    def weights(self, expected: Collection[str], entry: str | None = None) -> Weights:
        """The tensors that are named as ``expected``, after any wrappers and prefixes.

        Wrappers are dictionaries and lists (``state_dict``, ``net``, ``model_ema``), prefixes are parts of names
        (``module.``, ``_orig_mod.``, ``backbone.``); both may be nested.  ``entry`` names them, joined by dots, where
        several networks fit.  Without one that fits, the nearest is returned for the caller's comparison.  Raises
        :class:`BadValue` if several networks fit or the named entry does not exist.
        """
        tensors = self._tensors
        required = without_counters(expected)
        # The names as they stand come first, as other networks call layers `linear` and `shortcut` themselves.
        for rename in (str, _renamed):
            if prefixes := _prefixes(tensors, required, rename, complete=True):
                break
        else:
            self._require_names()
            rename, prefixes = str, _prefixes(tensors, required, str, complete=False)
        networks = {prefix: _under(tensors, prefix, rename, expected, prefixes) for prefix in prefixes}
        prefix = _chosen(self.source, networks, entry)
        # Lists of averaged weights, as some implementations of an EMA save them.
        averages = sorted({one.container for one in tensors if one.container[-1:] == ("shadow_params",)})
        unnamed = (f"The tensors in {'.'.join(container)} have no names and are not read." for container in averages)
        return Weights(networks[prefix], _normalisation(tensors), (*self._said, *unnamed))

    def _require_names(self) -> None:
        """Raise :class:`DataCorrupt` for a file whose weights are a list."""
        largest = _largest(self._tensors)
        names = [one.name for one in self._tensors if one.prefix == largest]
        if len(names) > 1 and all(name.isdecimal() for name in names):
            where = f" in {largest.removesuffix('.')}" if largest else ""
            raise DataCorrupt(
                f"{self.source} holds {len(names)} tensors without names{where}, as some implementations of an EMA do.",
                "copy them into the network where they come from (for torch_ema: ema.copy_to(network.parameters())), "
                "then torch.save(network.state_dict(), FILE)",
            )


def without_counters(names: Iterable[str]) -> set[str]:
    """The names of tensors that change predictions."""
    return {name for name in names if not name.endswith(COUNTER)}


def _renamed(name: str) -> str:
    return ".".join(_RENAMED.get(part, part) for part in name.split("."))


def _prefixes(
    tensors: list[_Tensor], required: Collection[str], rename: Callable[[str], str], *, complete: bool
) -> list[str]:
    """Prefixes under which all required names are found, or else the one with the most of them."""
    found: Counter[str] = Counter()
    for one in tensors:
        parts = one.full.split(".")
        for start in range(len(parts)):
            if rename(".".join(parts[start:])) in required:
                found[".".join([*parts[:start], ""]) if start else ""] += 1
    if complete:
        return [prefix for prefix, count in found.items() if count == len(required)]
    return [max(found, key=lambda prefix: (found[prefix], -len(prefix)))] if found else [_largest(tensors)]


def _largest(tensors: list[_Tensor]) -> str:
    """The prefix of the container with the most tensors, for a file without any name that is expected."""
    return Counter(one.prefix for one in tensors).most_common(1)[0][0]


def _under(
    tensors: list[_Tensor],
    prefix: str,
    rename: Callable[[str], str],
    expected: Collection[str],
    others: Collection[str],
) -> dict[str, torch.Tensor]:
    """The tensors below a prefix by their names there, without what lies beside a network's weights.

    Beside them lie other dictionaries, single numbers, a loss, constants of pixels, and networks under the prefixes
    ``others``.  What remains and is not expected belongs to another network.
    """
    below = {rename(one.full.removeprefix(prefix)): one for one in tensors if one.full.startswith(prefix)}
    homes = {one.container for name, one in below.items() if name in expected}
    apart = tuple(other for other in others if len(other) > len(prefix))

    def belongs(name: str, one: _Tensor) -> bool:
        first, _dot, rest = name.partition(".")
        beside = first in _BESIDE or (not rest and not one.value.ndim) or _is_constant(one)
        return not beside and not one.full.startswith(apart) and (not homes or one.container in homes)

    return {name: one.value for name, one in below.items() if name in expected or belongs(name, one)}


def _is_constant(one: _Tensor) -> bool:
    return one.value.numel() == 3 and any(re.search(names, one.full) for names in _CONSTANTS.values())


def _chosen(path: Path | str, networks: Mapping[str, dict[str, torch.Tensor]], entry: str | None) -> str:
    """The prefix that ``entry`` names, or the only one; several are one if their tensors are equal."""
    prefixes = list(networks)
    names = {prefix: prefix.removesuffix(".") or "." for prefix in prefixes}  # "." is the file's top level
    if entry is not None:
        found = [prefix for prefix, name in names.items() if name == entry or name.startswith(f"{entry}.")]
        if not found:
            raise BadValue(f"{path} has no weights of this network under {entry!r}.", f"use {_listed(names.values())}")
        exact = [prefix for prefix in found if names[prefix] == entry]
        prefixes = exact or found
    first = networks[prefixes[0]]
    if any(not _equal(first, networks[other]) for other in prefixes[1:]):
        shown = _listed(names[prefix] for prefix in prefixes)
        raise BadValue(
            f"{path} holds {len(prefixes)} networks of these names, under {shown}.",
            f"name the one to import: --entry {names[prefixes[0]]}",
        )
    return prefixes[0]


def _listed(names: Collection[str] | Iterator[str]) -> str:
    *rest, last = (repr(name) for name in names)
    return f"{', '.join(rest)} and {last}" if rest else last


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in one.items()
    )


def _normalisation(tensors: list[_Tensor]) -> Normalisation | None:
    found = {
        kind: tuple(float(f"{value:.6g}") for value in one.value.float().flatten().tolist())
        for kind, names in _CONSTANTS.items()
        for one in tensors
        if _is_constant(one) and re.search(names, one.full)
    }
    if len(found) < 2 or not all(0 < one < math.inf for one in found["std"]):
        return None
    of_pixels = all(abs(one) <= 1 for one in found["mean"])
    return Normalisation.model_validate(found) if of_pixels else None


def _tensors(found: Any, container: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[_Tensor]:
    """All tensors in nested dictionaries and lists."""
    seen = set() if seen is None else seen
    if id(found) in seen or len(container) > _DEPTH:
        return
    seen.add(id(found))
    for key, value in found.items() if isinstance(found, Mapping) else enumerate(found):
        if isinstance(value, torch.Tensor):
            yield _Tensor(container, str(key), value)
        elif isinstance(value, (Mapping, list, tuple)):
            yield from _tensors(value, (*container, str(key)), seen)


def _instead(found: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    """What a file without tensors holds."""
    values = list(found.values() if isinstance(found, Mapping) else found)
    classes = dict.fromkeys(type(value).__name__ for value in values)
    return f", but {_listed(list(classes)[:3])} objects" if classes else ", it is empty"
