"""A short hash of code that does not ship with RD3, such as a method in a notebook.

It covers what Python executes: neither comments nor docstrings, except those of inner functions, nor where the code is.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, NoneType

_PLAIN = (NoneType, bool, int, float, complex, str, bytes)
_WRAPPED = ("__wrapped__", "__func__", "func", "fget")
"""Attributes with the function of decorated functions, class methods, partial functions and properties."""


def code_hash(thing: object, *, helpers: bool = True) -> str | None:
    """Hash of a class or function and its own base classes; None for code that ships with RD3.

    It begins with Python's version, as another one executes the same code differently.  ``helpers``: with functions,
    classes and constants of its module that it uses, which must be complete by then.
    """
    thing = _unwrapped(thing if isinstance(thing, type | FunctionType) else getattr(thing, "build", thing))
    if not isinstance(thing, type | FunctionType) or _package(thing) == "rd3":
        return None
    parts = "\0".join(_parts(thing, _package(thing), helpers, set()))
    return f"{sys.implementation.cache_tag}:{hashlib.sha256(parts.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _package(thing: object) -> str:
    return str(getattr(thing, "__module__", "")).partition(".")[0]


def _unwrapped(thing: object) -> object:
    while not isinstance(thing, type):
        inner = next((getattr(thing, name) for name in _WRAPPED if callable(getattr(thing, name, None))), None)
        if inner is None:
            break
        thing = inner
    return thing


def _parts(thing: object, package: str, helpers: bool, seen: set[int]) -> Iterator[str]:
    """Everything that the hash covers, as texts; of code of other packages the name alone."""

    def all_of(*things: object) -> Iterator[str]:
        for one in things:
            yield from _parts(one, package, helpers, seen)

    thing = _unwrapped(thing)
    yield type(thing).__name__
    if isinstance(thing, _PLAIN):
        yield repr(thing)
    elif isinstance(thing, tuple | list):
        yield from all_of(len(thing), *thing)
    elif isinstance(thing, dict):
        yield from all_of(len(thing), *thing, *thing.values())
    elif isinstance(thing, set | frozenset):
        yield from sorted(map(repr, thing))
    elif isinstance(thing, CodeType):
        yield thing.co_code.hex()
        yield from all_of(thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_consts)
    elif isinstance(thing, type | FunctionType):
        yield thing.__qualname__
        if _package(thing) != package or id(thing) in seen:
            return
        seen.add(id(thing))
        yield from _of_class(thing, all_of) if isinstance(thing, type) else _of_function(thing, all_of, helpers)


def _of_class(cls: type, all_of: Callable[..., Iterator[str]]) -> Iterator[str]:
    yield from all_of(*cls.__bases__)
    for name, value in sorted(vars(cls).items()):
        if not name.startswith("__") or isinstance(value, FunctionType):
            yield from all_of(name, value)


def _of_function(function: FunctionType, all_of: Callable[..., Iterator[str]], helpers: bool) -> Iterator[str]:
    code = function.__code__
    consts = [None if const == function.__doc__ else const for const in code.co_consts]
    yield from all_of(code.replace(co_consts=tuple(consts)), function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield from all_of(cell.cell_contents)
    if helpers:
        for name in sorted(set(_names(code)) & function.__globals__.keys()):
            value, kinds = function.__globals__[name], (bool, int, float, str, bytes, tuple)
            same = isinstance(value, type | FunctionType) and value.__module__ == function.__module__
            if not name.startswith("__") and (same or isinstance(value, kinds)):
                yield from all_of(name, value)


def _names(code: CodeType) -> Iterator[str]:
    """Names that the code and the functions in it look up."""
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _names(const)
