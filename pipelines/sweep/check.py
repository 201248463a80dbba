"""Parse a YAML document into a :class:`Sweep`; every mistake is reported with its location."""

from __future__ import annotations

import re
from typing import Any, get_args

from pipelines.grid.catalog import Catalog
from pipelines.grid.check import BIGGEST_SEED, PartCheck, one_of, text_of, unknown_keys, what
from pipelines.grid.located_yaml import Located, Path
from pipelines.grid.values import Chosen
from pipelines.sweep.space import SpaceCheck
from pipelines.sweep.values import PrunerName, SamplerName, Sweep, labelled
from rd3.datasets import DatasetInfo
from rd3.errors import RD3Error
from rd3.protocol import EvalProtocol, fitting, merged, presets, resolve_protocol

REQUIRED = ("methods", "dataset", "ipc", "teacher", "protocol", "space", "trials")
KEYS = (
    "name", "description", *REQUIRED, "student", "batch", "sampler", "pruner", "validate_epochs", "seed", "set_seed",
    "student_seeds", "test", "test_on",
)  # fmt: skip
SINGLE = {"datasets": "dataset", "ipc": "ipc", "students": "student", "protocols": "protocol"}
"""Keys that are lists in a grid and single values in a sweep."""


def check_sweep(document: Located, name: str, text: str, catalog: Catalog) -> Sweep | None:
    """The sweep, or None with at least one problem added to ``document``."""
    data = document.data
    if data is None:
        document.problem((), "The file is empty.", f"add {', '.join(REQUIRED)}")
        return None
    if not isinstance(data, dict):
        document.problem((), f"A sweep must be a mapping, got {what(data)}.", "start with `methods:`")
        return None
    unknown_keys(document, data, KEYS, (), "A sweep")
    for key in REQUIRED:
        if key not in data:
            document.problem((), f"The key {key!r} is missing.", f"add `{key}:`")
    check = _SweepCheck(document, data, dict.fromkeys(data, ()), catalog)
    values = check.values(name)
    return Sweep(**values, text=text) if not document.problems else None


class _SweepCheck(PartCheck):
    """Checks methods, dataset, teacher and protocol of a sweep as those of a grid, which are lists."""

    def values(self, name: str) -> dict[str, Any]:
        """The fields of a :class:`Sweep`, as far as they are valid."""
        document, data = self.document, self.data
        head = {
            "name": text_of(document, data, "name", name),
            "description": text_of(document, data, "description", ""),
            "sampler": one_of(document, data, "sampler", get_args(SamplerName)),
            "pruner": one_of(document, data, "pruner", get_args(PrunerName)),
        }
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", head["name"]):
            document.problem(("name",), f"Invalid name {head['name']!r}.", "use letters, digits, '.', '_' and '-'")
        if data.get("test_on", "validation") != "validation":
            document.problem(
                ("test_on",),
                f"A sweep is tuned on validation images, got {what(data['test_on'])}.",
                "remove it; only the winner is tested, once",
            )
        infos = self._datasets()
        ipc = self._numbers("ipc", least=1) if "ipc" in data else ()
        methods = self._chosen("methods", self._method) if "methods" in data else []
        protocols = self._chosen("protocols", self.catalog.protocol) if "protocol" in data else []
        students = self._names("students", self._network) if "student" in data else {}
        roles = self._teacher(infos) if isinstance(data.get("teacher"), str) else self._no_role()
        self._settings(methods, infos, ipc)
        self._protocols(protocols, {}, {})
        numbers = {
            key: self._number(key, least, default)
            for key, least, default in (
                ("trials", 1, None), ("batch", 1, 4), ("validate_epochs", 1, 5), ("seed", 0, 0), ("set_seed", 0, 0),
            )
        }  # fmt: skip
        values: dict[str, Any] = {
            **head,
            **numbers,
            "methods": tuple(chosen for chosen, _path in methods),
            "dataset": next(iter(infos), ""),
            "ipc": next(iter(ipc), 1),
            "teacher": next(iter(roles.values()), ""),
            "student": next(iter(students), None),
            "protocol": next((chosen for chosen, _path in protocols), None),
            "student_seeds": self._numbers("student_seeds", least=0, default=[0]),
            "test_seeds": self._test_seeds(),
        }
        values["space"] = self._space(values, infos)
        self._preset_names(head["name"], values["methods"], values["protocol"])
        return values

    def _at(self, key: str, *more: str | int) -> Path:
        return (SINGLE[key], *more[1:]) if key in SINGLE else super()._at(key, *more)

    def _list(self, key: str, default: list[Any] | None = None) -> list[Any]:
        if key not in SINGLE:
            return super()._list(key, default)
        return [self.data[SINGLE[key]]] if SINGLE[key] in self.data else []

    def _no_role(self) -> dict[str, str]:
        if "teacher" in self.data:
            message = f"Expected a role, got {what(self.data['teacher'])}."
            self.document.problem(("teacher",), message, "e.g. `teacher: resnet18`")
        return {}

    def _number(self, key: str, least: int, default: int | None) -> int | None:
        value = self.data.get(key, default)
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= BIGGEST_SEED
        if key in self.data and not right:
            message = f"Expected an integer of at least {least}, got {what(value)}."
            self.document.problem((key,), message)
        return value

    def _test_seeds(self) -> tuple[int, ...]:
        test = self.data.get("test", {})
        if not isinstance(test, dict):
            self.document.problem(("test",), f"Expected student_seeds, got {what(test)}.", "e.g. {student_seeds: [0]}")
            return ()
        unknown_keys(self.document, test, ("student_seeds",), ("test",), "A sweep's test")
        inner = _SweepCheck(self.document, test, dict.fromkeys(test, ("test",)), self.catalog)
        return inner._numbers("student_seeds", least=0, default=[0, 1, 2])

    def _space(self, values: dict[str, Any], infos: dict[str, DatasetInfo]) -> Any:
        """The space, checked against the base protocol resolved for the set."""
        chosen: Chosen | None = values["protocol"]
        resolve = _any_protocol
        if chosen is not None and infos and not self.document.problems:
            [info] = infos.values()
            network = self.catalog.role(info.name, values["teacher"]).network
            same = values["student"] in (None, network)
            rule, size = self.catalog.protocol(chosen.name), values["ipc"] * info.num_classes
            frame = {"factor": info.factor, "same_network": same, "set_size": size}

            def resolve(moved: dict[str, Any]) -> EvalProtocol:
                return resolve_protocol(rule, **frame, overrides=fitting(rule, same, merged(chosen.values, moved)))

            try:
                resolve_protocol(rule, **frame, overrides=chosen.values)
            except RD3Error as error:
                self.document.problem(("protocol",), error.message, error.fix)
                resolve = _any_protocol
        size = values["ipc"] * next(iter(infos.values())).num_classes if infos else None
        fixed = chosen.values if chosen is not None else {}
        space = SpaceCheck(self, resolve, size, fixed)
        return space.dimensions(values["sampler"], values["trials"])

    def _preset_names(self, name: str, methods: tuple[Chosen, ...], base: Chosen | None) -> None:
        """Check that no winner would have the name of a built-in protocol or of the base protocol."""
        winners = [f"{name}-{label}" for label in labelled(methods)]
        for winner in winners:
            if winner in presets():
                message = f"The winner would have the name {winner}, which is a built-in protocol."
                self.document.problem(("name",), message, "rename the sweep")
        if base is not None and base.name in winners:
            message = f"The base protocol {base.name} has the name that the winner would have."
            self.document.problem(("protocol",), message, "rename the sweep")


def _any_protocol(moved: dict[str, Any]) -> EvalProtocol:
    """A valid protocol, to check the space of a file whose own protocol is invalid."""
    overrides = fitting(presets()["rd3"], True, moved)
    return resolve_protocol("rd3", factor=1, same_network=True, set_size=10**9, overrides=overrides)
