"""Read the weights of a network from a checkpoint written elsewhere: formats, wrappers and prefixes.

Nothing in a file is executed: torch's own reader of plain tensors reads it, and objects of other classes (arguments,
NumPy scalars) are replaced by empty ones.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rd3.errors import BadValue, DataCorrupt, RD3Error
from rd3.foreign_files import require_whole

COUNTER = "num_batches_tracked"
"""Buffer of batch norms that changes no prediction; files from before torch 0.4 lack it."""
SAVE = "save the weights where they come from: torch.save(network.state_dict(), FILE)"
ROOT = "."
"""Name of the file's top level among its entries."""
_RENAMED = {"linear": "fc", "shortcut": "downsample"}
"""Names in kuangliu/pytorch-cifar of layers that are the same in torchvision's ResNets."""
_BESIDE = ("criterion", "loss", "loss_fn", "n_averaged")
"""Parts of a saved training that are no layers."""
_CALLED = ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "input", "breakpoint")
"""Builtins that only a hostile file names; it is refused, although nothing would be called."""
_CLASSES, _DEPTH = 200, 8
"""Limits on the classes of foreign objects in a file, and on the nesting of its entries."""


class Weights(NamedTuple):
    """A state dict in the names of a network, with the name of the entry that holds it."""

    tensors: dict[str, torch.Tensor]
    entry: str
    constants: dict[str, tuple[float, ...]]
    """Three numbers under names that end in ``mean`` or ``std``: constants of a normalising layer, perhaps."""


class _Tensor(NamedTuple):
    container: tuple[str, ...]
    name: str
    value: torch.Tensor

    @property
    def full(self) -> str:
        return ".".join((*self.container, self.name))


class Checkpoint:
    """The tensors of a file, in which the weights of a network are looked for."""

    def __init__(self, source: Path | str, found: Mapping[Any, Any] | list[Any] | tuple[Any, ...]):
        """Raises :class:`DataCorrupt` if there is no tensor in ``found``; ``source`` is its name in messages."""
        self.source = source
        self._tensors = list(_tensors(found))
        if not self._tensors:
            raise DataCorrupt(f"{source} holds no state dict{_instead(found)}.", SAVE)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read a safetensors file, or one by ``torch.save`` with plain tensors.

        Raises :class:`DataMissing` or :class:`DataCorrupt` for a file that cannot be read or holds no tensors.
        """
        return cls(path, _opened(path))

    def weights(self, expected: Collection[str], entry: str | None = None) -> Weights:
        """The tensors that are named as ``expected``, after any wrappers and prefixes.

        Wrappers are dictionaries and lists (``state_dict``, ``net``, ``model_ema``), prefixes are parts of names
        (``module.``, ``_orig_mod.``, ``backbone.``); both may be nested.  ``entry`` names them, joined by dots, where
        several networks fit.  Without one that fits, the nearest is returned for the caller's comparison.  Raises
        :class:`BadValue` if several networks fit or the named entry does not exist.
        """
        tensors = self._tensors
        required = {name for name in expected if not name.endswith(COUNTER)}
        # The names as they stand come first, as other networks call layers `linear` and `shortcut` themselves.
        for rename in (str, _renamed):
            prefixes = _prefixes(tensors, required, rename, complete=True)
            if prefixes:
                break
        else:
            rename, prefixes = str, _prefixes(tensors, required, str, complete=False)
        networks = {prefix: _under(tensors, prefix, rename, expected, prefixes) for prefix in prefixes}
        prefix = _chosen(self.source, networks, entry)
        return Weights(networks[prefix], prefix.removesuffix(".") or ROOT, _constants(tensors))


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
    """The container with the most tensors, for a file without any name that is expected."""
    [(container, _count)] = Counter(one.container for one in tensors).most_common(1)
    return "".join(f"{part}." for part in container)


def _under(
    tensors: list[_Tensor],
    prefix: str,
    rename: Callable[[str], str],
    expected: Collection[str],
    others: Collection[str] = (),
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
    return one.value.numel() == 3 and one.full.endswith(("mean", "std"))


def _chosen(path: Path | str, networks: Mapping[str, dict[str, torch.Tensor]], entry: str | None) -> str:
    """The prefix that ``entry`` names, or the only one; several are one if their tensors are equal."""
    prefixes = list(networks)
    names = {prefix: prefix.removesuffix(".") or ROOT for prefix in prefixes}
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


def _constants(tensors: list[_Tensor]) -> dict[str, tuple[float, ...]]:
    """Tensors of three numbers called mean and std, of one normalising layer."""
    return {
        kind: tuple(one.value.float().flatten().tolist())
        for kind in ("mean", "std")
        for one in tensors
        if _is_constant(one) and one.full.endswith(kind)
    }


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


def _opened(path: Path) -> Mapping[Any, Any] | list[Any] | tuple[Any, ...]:
    """The content of a safetensors file or of a file by ``torch.save``; tensors on the CPU."""
    require_whole(path)
    with path.open("rb") as file:
        start = file.read(10)
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" or start[8:] == b'{"' else _plain(path)
    except RD3Error:
        raise
    except Exception as error:  # a damaged or hostile file can make a reader raise anything
        raise _unreadable(path, error) from None
    if isinstance(found, _Foreign):
        raise DataCorrupt(
            f"{path} is a pickled {type(found).__name__} object, not a state dict; RD3 reads no pickled objects.", SAVE
        )
    if not isinstance(found, (Mapping, list, tuple)):
        raise DataCorrupt(f"{path} holds one {type(found).__name__}, not a state dict.", SAVE)
    return found


def _instead(found: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    """What a file without tensors holds."""
    values = list(found.values() if isinstance(found, Mapping) else found)
    classes = dict.fromkeys(type(value).__name__ for value in values)
    return f", but {_listed(list(classes)[:3])} objects" if classes else ", it is empty"


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


class _Foreign:
    """Stands for an object of a class that is not read; keeps nothing."""

    def __init__(self, *_arguments: object, **_options: object):
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _stub(name: str, like: type = object) -> type:
    """An empty class in place of class ``name``; ``like`` a dict or list, its objects are plain ones of these."""
    members = {} if like is object else {"__new__": lambda _cls, *_arguments: like()}
    return type(name, (_Foreign,) if like is object else (), {"__module__": __name__, **members})


def _plain(path: Path) -> Any:
    """``torch.load`` of plain tensors, with empty objects in place of others: their classes are not imported."""
    stubs: dict[str, type] = {}
    for _attempt in range(_CLASSES):
        try:
            allowed = torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()])
            with allowed, warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            added = _missing_stub(str(error), stubs)
            if added is None:
                raise
            stubs |= added
    raise DataCorrupt(f"{path} holds objects of more than {_CLASSES} classes.", SAVE)


def _missing_stub(error: str, stubs: Mapping[str, type]) -> dict[str, type] | None:
    """The stub that torch's reader asks for, or a dict or list in place of one that is filled as such."""
    wanted = re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed", error)
    if wanted is not None:
        name = wanted[1] if "." in wanted[1] else f"builtins.{wanted[1]}"
        return None if name in stubs or name.removeprefix("builtins.") in _CALLED else {name: _stub(name)}
    like = {"setitem": dict, "append": list, "extend": list}
    kind = next((kind for word, kind in like.items() if f"only {word}" in error.lower()), None)
    filled = next((name for name, stub in stubs.items() if f"{stub!r}" in error and issubclass(stub, _Foreign)), None)
    return {filled: _stub(filled, kind)} if filled and kind else None


def _unreadable(path: Path, error: Exception) -> RD3Error:
    """One sentence, without torch's own advice, which is to unpickle the file."""
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return DataCorrupt(f"{path} is a TorchScript archive, not a state dict.", SAVE)
    blocked = re.search(r"GLOBAL (\S+) whose module|GLOBAL (\S+) ", text)
    if blocked is not None:
        return DataCorrupt(f"{path} calls {blocked[1] or blocked[2]} when unpickled, which no weights need.", SAVE)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            return DataCorrupt(
                f"{path} is a ZIP archive of {', '.join(names[:3]) or 'nothing'}, not a file of weights.",
                "unpack it and import a file in it",
            )
    if isinstance(error, pickle.UnpicklingError):
        return DataCorrupt(f"{path} is damaged, or holds pickled objects, which RD3 does not read.", SAVE)
    return DataCorrupt(f"{path} cannot be read as weights: it is damaged or of another format.", SAVE)
