"""One lazy registry for methods, datasets, networks, losses and augmentations.

A registry has a package whose modules register themselves on import, and an entry-point group for other packages.
Nothing is imported before the first look-up; a module that fails to import affects only look-ups of its own name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from rd3.errors import BadValue, DataMissing, RD3Error, UnknownName, Unsupported
from rd3.own_code import code_hash

T = TypeVar("T")


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    """``"did you mean 'x'?"``, or the list of all names if none is close."""
    if not known:
        return "leave it out: there are none"
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(sorted(known))}."


def _reason(error: BaseException, file_name: str) -> str:
    """Why an import failed: the line of that file, if known, and the exception."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == file_name]
    at = f"line {lines[-1]}: " if lines else ""
    return f"{at}{type(error).__name__}: {' '.join(str(error).split())}"


def _origin(thing: object) -> tuple[object, object]:
    """The file and the name in it that define a class or function; equal for a file that is loaded under two names.

    Of a registered network, it is the function that builds it.
    """
    thing = getattr(thing, "build", thing)
    module = getattr(thing, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file else module, getattr(thing, "__qualname__", None)


def how_to_renew(thing: object) -> str:
    """An instruction to authors of a plugin whose code changed: what gives its results keys of their own."""
    return "raise its version" if hasattr(thing, "version") else "give it another name"


class Registry(Generic[T]):
    """Objects of one kind by name, found in ``package`` and in the entry-point group of the same name.

    ``unsupported``: published things that RD3 cannot have, with the reason; a plugin may still register one of them.
    """

    def __init__(self, kind: str, package: str, unsupported: Mapping[str, str] | None = None):
        self.kind = kind
        self.package = package
        self._unsupported = dict(unsupported or {})
        self._things: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: register an object under ``name``; raises :class:`RD3Error` if that is the name of another one.

        The same object may be registered again, as by a file that is also an installed plugin, or a cell of a notebook.
        Other code under the same name and version is registered with a warning, as results of both have the same key.
        """

        def add(thing: T) -> T:
            known = self._things.get(name)
            if known is not None and _origin(known) != _origin(thing):
                raise RD3Error(
                    f"{self.kind} {name!r} is registered twice, by {known!r} and {thing!r}.",
                    "give one of them another name, or use the one that is installed, by its name alone",
                )
            if known is not None and known is not thing:
                self._warn_of_other_code(name, known, thing)
            self._things[name] = thing
            return thing

        return add

    def _warn_of_other_code(self, name: str, known: T, thing: T) -> None:
        """Warn if ``thing`` replaces ``known`` under the same version with other code."""
        version, code = getattr(thing, "version", None), code_hash(thing, helpers=False)
        if version != getattr(known, "version", None) or code == code_hash(known, helpers=False):
            return
        under = "" if version is None else f" under the same version {version}"
        warnings.warn(
            f"{self.kind} {name!r} now has other code{under} ({str(code).partition(':')[2]}): stored results of the "
            f"earlier code are reused; {how_to_renew(thing)} to compute them again",
            stacklevel=4,
        )

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if not module.name.startswith("_"):
                full = f"{self.package}.{module.name}"
                where = full.replace(".", "/") + ("/__init__.py" if module.ispkg else ".py")
                self._attempt(module.name, full, where, partial(importlib.import_module, full))
        for point in entry_points(group=self.package):
            self._attempt(point.name, point.module, f"plugin {point.value}", point.load)

    def _attempt(self, name: str, module: str, where: str, load: Callable[[], object]) -> None:
        """Import one module; if this fails, remove what it registered and record ``name`` as broken."""
        try:
            load()
        except (Exception, SystemExit) as error:
            self._broken[name] = f"{where}: {_reason(error, Path(where).name)}"
            self._things = {key: one for key, one in self._things.items() if getattr(one, "__module__", "") != module}

    def load_file(self, path: Path) -> list[str]:
        """Run a Python file from any folder and return the names that it registers, in order.

        Raises :class:`DataMissing` if there is no such file, :class:`BadValue` if it fails to import, and
        :class:`UnknownName` if it registers nothing.
        """
        if not path.is_file():
            raise DataMissing(f"There is no file {path}.", "check the path")
        self._load()
        before = dict(self._things)
        spec = importlib.util.spec_from_file_location(f"rd3_file_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise BadValue(f"{path} is not a Python file.", "give a file that ends in .py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except RD3Error:
            raise
        except (Exception, SystemExit) as error:
            raise BadValue(f"{path} fails to import: {_reason(error, path.name)}.", "fix the file") from None
        names = [name for name, thing in self._things.items() if thing is not before.get(name)]
        if not names:
            raise UnknownName(f"{path} registers no {self.kind}.", f"decorate it with @register_{self.kind}")
        return names

    def names(self) -> list[str]:
        """All available names, sorted."""
        self._load()
        return sorted(self._things)

    def broken(self) -> dict[str, str]:
        """Modules and entry points that failed to import, by name, with location and reason."""
        self._load()
        return dict(self._broken)

    def unsupported(self) -> dict[str, str]:
        """Published things of this kind that are not available, by name, with the reason."""
        self._load()
        return {name: why for name, why in self._unsupported.items() if name not in self._things}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._things

    def get(self, name: str) -> T:
        """The object registered as ``name``.

        Raises :class:`UnknownName` with a suggestion, or :class:`Unsupported` with the reason.
        """
        if name not in self._things:
            self._load()
        if name in self._things:
            return self._things[name]
        what = f"{self.kind.capitalize()} {name!r}"
        if name in self._broken:
            raise UnknownName(f"{what} fails to import: {self._broken[name]}.", "fix or remove it")
        if name in self._unsupported:
            raise Unsupported(f"{what} is unsupported: {self._unsupported[name]}.", f"use another {self.kind}")
        raise UnknownName(f"There is no {self.kind} {name!r}.", did_you_mean(name, self.names()))
