"""Read files by ``torch.save`` and safetensors files from outside.

Nothing in a file is executed: torch's own reader of plain tensors reads it, and objects of other classes (arguments,
NumPy scalars) are replaced by empty ones.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rd3.errors import DataCorrupt
from rd3.foreign_files import UNREADABLE, require_whole

_CALLED = ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "input", "breakpoint")
"""Builtins that only a hostile file names; it is refused, although nothing would be called."""
_CLASSES = 200
"""Limit on the classes of foreign objects in a file."""


def read_torch_file(path: Path, wanted: str, fix: str) -> Mapping[Any, Any] | list[Any] | tuple[Any, ...]:
    """The mapping or sequence in a safetensors file or a file by ``torch.save``; tensors on the CPU.

    ``wanted`` and ``fix`` say in messages what the file should hold and how to write it.  Raises :class:`DataMissing`
    or :class:`DataCorrupt` for a file that cannot be read or holds another object, :class:`BadValue` for one part of a
    distributed checkpoint.
    """
    found = _content(path, wanted, fix)
    if not isinstance(found, (Mapping, list, tuple)):
        raise DataCorrupt(f"{path} holds one {type(found).__name__}, not {wanted}.", fix)
    return found


def read_tensor(path: Path, what: str) -> torch.Tensor:
    """The one tensor in a file by ``torch.save``, or in a safetensors file; ``what`` it holds is for messages."""
    fix = f"save the {what} alone, as torch.save({what}, FILE)"
    found = _content(path, f"one tensor of {what}", fix)
    if isinstance(found, Mapping) and len(found) == 1:
        [found] = found.values()
    if not isinstance(found, torch.Tensor):
        raise DataCorrupt(f"{path} holds a {type(found).__name__}, expected one tensor of {what}.", fix)
    return found


def _content(path: Path, wanted: str, fix: str) -> Any:
    """What a file holds, without pickled objects of other classes on its top level."""
    require_whole(path)
    with path.open("rb") as file:
        start = file.read(10)
    try:
        # A safetensors file starts with the length of its header in eight bytes, then the header, which is JSON.
        found = load_file(path) if path.suffix == ".safetensors" or start[8:] == b'{"' else _load_plain_tensors(path)
    except Exception as error:  # a damaged or hostile file can make a reader raise anything
        raise _unreadable(path, start, error, wanted, fix) from None
    if isinstance(found, UnreadObject):
        raise DataCorrupt(
            f"{path} is a pickled {type(found).__name__} object, not {wanted}; RD3 reads no pickled objects.", fix
        )
    return found


class UnreadObject:
    """Stands for an object of a class that is not read; keeps nothing."""

    def __init__(self, *_arguments: object, **_options: object):
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _stub(name: str, like: type = object) -> type:
    """An empty class in place of class ``name``.

    With ``like``, a kind of dict or list, its objects are plain ones of these: torch fills no others from the file.
    """
    members = {} if like is object else {"__new__": lambda _cls, *_arguments: like()}
    return type(name, (UnreadObject,) if like is object else (), {"__module__": __name__, **members})


def _load_plain_tensors(path: Path) -> Any:
    """``torch.load`` of plain tensors, with empty objects in place of others: their classes are not imported."""
    stubs: dict[str, type] = {}
    for _attempt in range(_CLASSES + 1):
        try:
            allowed = torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()])
            with allowed, warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            added = _missing_stub(str(error), stubs)
            if added is None:
                raise
            stubs |= added
    raise _TooManyClasses


class _TooManyClasses(Exception):
    pass


def _missing_stub(error: str, stubs: Mapping[str, type]) -> dict[str, type] | None:
    """The stub that torch's reader asks for, or a dict or list in place of one that is filled as such.

    ``error``: its message, e.g. "Can only SETITEMS for dict, collections.OrderedDict, ..., but got <class 'Config'>".
    """
    if wanted := re.search(r"Unsupported global: GLOBAL (\S+) was not an allowed", error):
        name = wanted[1] if "." in wanted[1] else f"builtins.{wanted[1]}"
        return None if name in stubs or name.removeprefix("builtins.") in _CALLED else {name: _stub(name)}
    like = {"setitem": OrderedDict, "append": list, "extend": list}  # an OrderedDict may have attributes too
    kind = next((kind for word, kind in like.items() if f"only {word}" in error.lower()), None)
    filled = next((name for name, cls in stubs.items() if repr(cls) in error and issubclass(cls, UnreadObject)), None)
    return {filled: _stub(filled, kind)} if filled and kind else None


def _unreadable(path: Path, start: bytes, error: Exception, wanted: str, fix: str) -> DataCorrupt:
    """What is wrong with a file of this ``start``, without torch's own advice, which is to unpickle it."""
    text = " ".join(str(error).split())
    if isinstance(error, _TooManyClasses):
        fact = f"holds objects of more than {_CLASSES} classes"
    elif "TorchScript" in text:
        fact = f"is a TorchScript archive, not {wanted}"
    elif blocked := re.search(r"GLOBAL (\S+) whose module|GLOBAL (\S+) ", text):
        fact = f"calls {blocked[1] or blocked[2]} when unpickled, which no tensors need"
    elif archive := _archive(path):
        fact, fix = f"is a {archive}, not {wanted}", "unpack it and import a file in it"
    elif kind := next((kind for mark, kind in _STARTS.items() if start.startswith(mark)), None):
        fact = f"is {kind}, not {wanted}"
        if kind.startswith("compressed") or kind.endswith("archive"):
            fix = "unpack it first"
    elif isinstance(error, pickle.UnpicklingError):
        fact = "is damaged, or holds pickled objects, which RD3 does not read"
    else:
        fact = f"cannot be read as {wanted}: it is damaged or of another format"
    return DataCorrupt(f"{path} {fact}.", fix)


_STARTS = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a NumPy array",
    b"MATLAB": "a MATLAB file",
    b"GGUF": "a GGUF file",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
}
"""How other kinds of files start."""


def _archive(path: Path) -> str | None:
    """The kind and first members of a tar or ZIP archive; None for a file by torch, and for one of another kind."""
    # tar first, as one that stores a ZIP archive ends like it.
    try:
        with tarfile.open(path) as packed:  # gzip, bzip2 and xz too
            members = [member.name for member, _place in zip(packed, range(3), strict=False)]
        # The first format of torch.save, which torch still reads, was a tar archive with these members.
        if {"sys_info", "pickle"} & set(members):
            return None
        return f"tar archive of {', '.join(members) or 'nothing'}"
    except (tarfile.TarError, OSError, *UNREADABLE):
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, *UNREADABLE):
        return None
    if any(name.endswith("data.pkl") for name in names):
        return None
    return f"ZIP archive of {', '.join(names[:3]) or 'nothing'}"
