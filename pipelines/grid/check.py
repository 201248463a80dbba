"""Parse a YAML document into a :class:`Grid`; every error is reported with its location."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from pipelines.grid.catalog import Catalog
from pipelines.grid.located_yaml import Located, Path, place_text
from pipelines.grid.values import Chosen, Grid, Part
from rd3.datasets import DatasetInfo
from rd3.errors import RD3Error, StoreError
from rd3.methods import METHODS, resolve_settings
from rd3.methods._base import published
from rd3.models import network_info
from rd3.planning.sets import check_start
from rd3.protocol import mistakes_in, protocol_names, resolve_protocol
from rd3.registry import did_you_mean

PART_KEYS = tuple(name for name in Part.model_fields)
FILE_KEYS = ("name", "description", "timing", "test_on", *PART_KEYS, "also")
REQUIRED = ("methods", "datasets", "ipc", "teacher")
BIGGEST_SEED = 2**63 - 1


def check_document(document: Located, name: str, text: str, catalog: Catalog) -> Grid | None:
    """The grid, or None with at least one problem added to ``document``."""
    data = document.data
    if data is None:
        document.problem((), "The file is empty.", "add methods, datasets, ipc and a teacher")
        return None
    if not isinstance(data, dict):
        document.problem((), f"A grid must be a mapping, got {what(data)}.", "start with `methods:`")
        return None
    unknown_keys(document, data, FILE_KEYS, ())
    head = {
        "name": text_of(document, data, "name", name),
        "description": text_of(document, data, "description", ""),
        "timing": one_of(document, data, "timing", ("shared", "exclusive")),
        "test_on": one_of(document, data, "test_on", ("test", "validation")),
    }
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", head["name"]):
        document.problem(("name",), f"Invalid name {head['name']!r}.", "use letters, digits, '.', '_' and '-'")
    base = {key: value for key, value in data.items() if key in PART_KEYS}
    parts = [PartCheck(document, base, dict.fromkeys(base, ()), catalog).part()]
    for place, changes in enumerate(_also(document, data)):
        path = ("also", place)
        if not isinstance(changes, dict) or not changes:
            document.problem(
                path, f"Expected keys that change the grid, got {what(changes)}.", "e.g. `methods: [random]`"
            )
            continue
        unknown_keys(document, changes, PART_KEYS, path)
        changed = {key: value for key, value in changes.items() if key in PART_KEYS}
        homes: dict[str, Path] = {**dict.fromkeys(base, ()), **dict.fromkeys(changed, path)}
        parts.append(PartCheck(document, base | changed, homes, catalog).part())
    if document.problems:
        return None
    return Grid(**head, parts=tuple(part for part in parts if part is not None), text=text)


def what(value: Any) -> str:
    """Describe a YAML value in a message."""
    if value is None:
        return "nothing"
    kinds = {bool: "the boolean", str: "the text", int: "the number", float: "the number"}
    if type(value) in kinds:
        return f"{kinds[type(value)]} {json.dumps(value, ensure_ascii=False)[:60]}"
    return "a list" if isinstance(value, list) else "a mapping"


def unknown_keys(
    document: Located, data: dict[str, Any], known: tuple[str, ...], path: Path, owner: str = "A grid"
) -> None:
    for key in data:
        if key not in known:
            document.problem((*path, key), f"{owner} has no key {key!r} here.", did_you_mean(key, known))


def text_of(document: Located, data: dict[str, Any], key: str, default: str) -> str:
    value = data.get(key, default)
    if isinstance(value, str):
        return value
    document.problem((key,), f"Expected text, got {what(value)}.", "put it in quotes")
    return default


def one_of(document: Located, data: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    value = data.get(key, choices[0])
    if isinstance(value, str) and value in choices:
        return value
    document.problem((key,), f"Expected {' or '.join(choices)}, got {what(value)}.", did_you_mean(str(value), choices))
    return choices[0]


def _also(document: Located, data: dict[str, Any]) -> list[Any]:
    value = data.get("also", [])
    if isinstance(value, list):
        return value
    document.problem(("also",), f"Expected a list of partial grids, got {what(value)}.", "start each with '- '")
    return []


class PartCheck:
    """Checks one part of a grid; ``homes``: location of each key in the file (top level, or an item of ``also``)."""

    def __init__(self, document: Located, data: dict[str, Any], homes: dict[str, Path], catalog: Catalog):
        self.document = document
        self.data = data
        self.homes = homes
        self.catalog = catalog

    def part(self) -> Part | None:
        before = len(self.document.problems)
        for key in REQUIRED:
            if key not in self.data:
                self.document.problem((), f"The key {key!r} is missing.", f"add `{key}:`")
        infos = self._datasets()
        ipc = self._numbers("ipc", least=1)
        methods = self._chosen("methods", self._method)
        protocols = self._chosen("protocols", self.catalog.protocol, [{"rd3": {}}])
        values: dict[str, Any] = {
            "methods": tuple(chosen for chosen, _path in methods),
            "datasets": tuple(infos),
            "ipc": ipc,
            "teacher": self._teacher(infos),
            "students": self._students(),
            "protocols": tuple(chosen for chosen, _path in protocols),
            "protocol": self._mapping("protocol"),
            "set_seeds": self._numbers("set_seeds", least=0, default=[0]),
            "student_seeds": self._numbers("student_seeds", least=0, default=[0, 1, 2]),
            "vary": self._vary(),
        }
        self._settings(methods, infos, ipc)
        self._protocols(protocols, values["protocol"], values["vary"])
        return Part(**values) if len(self.document.problems) == before else None

    def _at(self, key: str, *more: str | int) -> Path:
        return (*self.homes.get(key, ()), key, *more)

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Report an :class:`RD3Error` as a problem at ``path``; store errors are not the file's and are raised."""
        try:
            yield
        except StoreError:
            raise
        except RD3Error as error:
            self.document.problem(path, error.message, error.fix)

    def _list(self, key: str, default: list[Any] | None = None) -> list[Any]:
        """The items of a list, which must be neither empty nor contain duplicates."""
        value = self.data.get(key, default)
        if value is default:
            return default or []
        if not isinstance(value, list):
            self.document.problem(self._at(key), f"Expected a list, got {what(value)}.", f"write `{key}: [...]`")
            return []
        if not value:
            self.document.problem(
                self._at(key), "The list is empty, so the grid would be empty.", "add at least one item"
            )
        self.repeats(value, self._at(key))
        return value

    def repeats(self, items: list[Any], path: Path) -> None:
        seen: dict[str, int] = {}
        for place, item in enumerate(items):
            number = isinstance(item, int | float) and not isinstance(item, bool)
            text = repr(float(item)) if number else json.dumps(item, sort_keys=True, default=str)
            if text in seen:
                message = f"Duplicate of {place_text((*path, seen[text]))}."
                self.document.problem((*path, place), message, "remove one of them")
            seen.setdefault(text, place)

    def _names(self, key: str, look_up: Callable[[str], Any]) -> dict[str, Any]:
        found = {}
        for place, name in enumerate(self._list(key)):
            if not isinstance(name, str):
                self.document.problem(self._at(key, place), f"Expected a name, got {what(name)}.")
                continue
            with self._noting(self._at(key, place)):
                found[name] = look_up(name)
        return found

    @staticmethod
    def _method(name: str) -> Any:
        return METHODS.get(name)

    @staticmethod
    def _network(name: str) -> Any:
        return network_info(name)

    def _datasets(self) -> dict[str, DatasetInfo]:
        return self._names("datasets", self.catalog.dataset)

    def _students(self) -> tuple[str, ...] | None:
        return tuple(self._names("students", self._network)) if "students" in self.data else None

    def _numbers(self, key: str, *, least: int, default: list[int] | None = None) -> tuple[int, ...]:
        good = []
        for place, number in enumerate(self._list(key, default)):
            if isinstance(number, bool) or not isinstance(number, int):
                self.document.problem(self._at(key, place), f"Expected an integer, got {what(number)}.")
            elif not least <= number <= BIGGEST_SEED:
                bound = f"of at least {least}" if number < least else "below 2^63"
                message = f"Expected an integer {bound}, got {number}."
                self.document.problem(self._at(key, place), message)
            else:
                good.append(number)
        return tuple(good)

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.data.get(key, {})
        if isinstance(value, dict):
            return value
        likely = (
            f"`protocols: [{value}]`, or for individual fields " if key == "protocol" and isinstance(value, str) else ""
        )
        fix = f"write {likely}`field: value`"
        self.document.problem(self._at(key), f"Expected fields with values, got {what(value)}.", fix)
        return {}

    def _chosen(
        self, key: str, look_up: Callable[[str], Any], default: list[Any] | None = None
    ) -> list[tuple[Chosen, Path]]:
        """Parse ``- name`` or ``- name: {field: value}`` items, with the location of the values; skip unknown names."""
        good = []
        for place, item in enumerate(self._list(key, default)):
            path = self._at(key, place)
            if isinstance(item, str):
                item = {item: {}}
            if not isinstance(item, dict) or len(item) != 1:
                self.document.problem(path, f"Expected a name, or one name with values, got {what(item)}.")
                continue
            [(name, values)] = item.items()
            if not isinstance(values, dict):
                message = f"Expected fields with values, got {what(values)}."
                self.document.problem((*path, name), message, f"write `{name}: {{field: value}}`, or only the name")
                continue
            with self._noting(path):
                look_up(name)
                good.append((Chosen(name=name, values=values), (*path, name)))
        return good

    def _teacher(self, infos: dict[str, DatasetInfo]) -> dict[str, str]:
        """The teacher role of each dataset."""
        value = self.data.get("teacher")
        if value is None and "teacher" not in self.data:
            return {}
        if not isinstance(value, dict):
            if not isinstance(value, str):
                message = f"Expected a role, or a role per dataset, got {what(value)}."
                self.document.problem(self._at("teacher"), message, "e.g. `teacher: resnet18`")
                return {}
            roles, places = dict.fromkeys(infos, value), dict.fromkeys(infos, self._at("teacher"))
        else:
            roles, places = {}, {}
            for dataset, role in value.items():
                places[dataset] = self._at("teacher", dataset)
                if isinstance(role, str):
                    roles[dataset] = role
                else:
                    self.document.problem(places[dataset], f"Expected a role, got {what(role)}.")
            for dataset in value:
                with self._noting(places[dataset]):
                    self.catalog.dataset(dataset)
            for dataset in infos:
                if dataset not in value:
                    message = f"Dataset {dataset} has no teacher."
                    self.document.problem(self._at("teacher"), message, f"add `{dataset}: ROLE`")
        for dataset, role in roles.items():
            if dataset in infos:
                with self._noting(places[dataset]):
                    self.catalog.role(dataset, role)
        return {dataset: role for dataset, role in roles.items() if dataset in infos}

    def _vary(self) -> dict[str, tuple[Any, ...]]:
        good = {}
        for name, values in self._mapping("vary").items():
            path = self._at("vary", name)
            if not isinstance(values, list) or not values:
                self.document.problem(path, f"Expected a list of values, got {what(values)}.", f"write `{name}: [...]`")
                continue
            self.repeats(values, path)
            good[name] = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        return good

    def setting(
        self, model: type[BaseModel], base: dict[str, Any], name: str, value: Any, path: Path, owner: str
    ) -> bool:
        """Check one value against its field in a method's settings, without coercion."""
        if name not in model.model_fields:
            fix = did_you_mean(name, list(model.model_fields))
            self.document.problem(path, f"{owner} has no field {name!r}.", fix)
            return False
        try:
            # JSON mode: a list is accepted as a tuple, but "100" and true are not numbers
            model.model_validate_json(json.dumps(base | {name: value}), strict=True)
        except ValidationError as error:
            messages = [entry["msg"] for entry in error.errors() if entry["loc"] and entry["loc"][0] == name]
            if messages:
                self.document.problem(path, f"{' / '.join(messages)}, got {what(value)}.")
            return not messages
        return True

    def field(self, name: str, value: Any, path: Path) -> bool:
        """Check one protocol field."""
        before = len(self.document.problems)
        with self._noting(path):
            mistakes = mistakes_in(name, value)
            if mistakes:
                self.document.problem(path, f"{' / '.join(mistakes)}, got {what(value)}.")
        return len(self.document.problems) == before

    def _settings(
        self, methods: list[tuple[Chosen, Path]], infos: dict[str, DatasetInfo], ipc: tuple[int, ...]
    ) -> None:
        for chosen, path in methods:
            method, owner = METHODS.get(chosen.name), f"Method {chosen.name}"
            for info in infos.values():
                base = published(chosen.name, info).values
                right = {
                    name: value
                    for name, value in chosen.values.items()
                    if self.setting(method.Settings, base, name, value, (*path, name), owner)
                }
                if right and ipc:
                    with self._noting(path):
                        settings = resolve_settings(chosen.name, info, ipc[0], right)
                        check_start(method().needs(info, settings, "").init, info, ipc[0])

    def _protocols(
        self, protocols: list[tuple[Chosen, Path]], shared: dict[str, Any], varied: dict[str, tuple[Any, ...]]
    ) -> None:
        """Check the fields one by one, then contradictions between the valid ones."""
        right, known = self.field, protocol_names()
        shared_right = {name: value for name, value in shared.items() if right(name, value, self._at("protocol", name))}
        own_right = [
            {name: value for name, value in chosen.values.items() if right(name, value, (*path, name))}
            for chosen, path in protocols
        ]
        moved_right: list[tuple[Path, dict[str, Any]]] = []
        for name, values in varied.items():
            for place, value in enumerate(values):
                path = self._at("vary", name, *([place] if name in known else []))
                if right(name, value, path):
                    moved_right.append((path, {name: value}))
        twice = [(self._at("vary", name), "protocol") for name in varied if name in shared]
        for chosen, path in protocols:
            twice += [((*path, name), "protocol") for name in chosen.values if name in shared]
            twice += [((*path, name), "vary") for name in chosen.values if name in varied]
        for path, other in twice:
            self.document.problem(path, f"This field is also set in '{other}'.", "remove it from one of the two")
        for (chosen, path), own in zip(protocols, own_right, strict=True):
            at = path if chosen.values or not shared else self._at("protocol")
            for where, moved in [(at, {}), *moved_right]:
                self._contradictions(chosen.name, shared_right | own | moved, where)

    def _contradictions(self, name: str, fields: dict[str, Any], where: Path) -> None:
        with self._noting(where):
            rule = self.catalog.protocol(name)
            resolve_protocol(rule, factor=1, same_network=True, set_size=10**9, overrides=fields)
