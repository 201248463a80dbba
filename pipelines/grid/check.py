"""Check the names and values of a grid file and turn it into a :class:`Grid`; every error has its location."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from pipelines.grid.catalog import ANY_FRAME, Catalog, Frame
from pipelines.grid.located_yaml import Located, Path, point_for_comma, written_at
from pipelines.grid.structure import (
    At,
    ClaimStructure,
    GridStructure,
    PartStructure,
    as_is,
    below,
    check_repeats,
    check_structure,
    items_of,
    keys_of,
    what,
)
from pipelines.grid.values import CALIBRATION, SETS, Chosen, Grid, Part
from rd3.claims import Claim
from rd3.datasets import DatasetInfo
from rd3.errors import BadValue, UnknownName
from rd3.methods import METHODS, mistakes_in_setting
from rd3.models import network_info
from rd3.planning.sets import check_known_set, check_start
from rd3.protocol import mistakes_in, protocol_names, unsupported_loss
from rd3.recipe import SetRecipe, SourceSplit
from rd3.registry import did_you_mean
from rd3.robustness.corruptions import KNOWN, STANDARD, corruption
from rd3.synthetic_set import IMPORTED
from tracking.report.paper import configurations, printed_tables

T = TypeVar("T")

_KEY = re.compile(r"[0-9a-f]{12,64}")
"""A set's key, or its beginning as lists show it."""
_LONGEST_NAME = 60
"""Characters of a name for imported sets."""
_SETS_FIX = "`rd3 set list` shows the keys, `rd3 set import` imports a set"


def check_document(document: Located, catalog: Catalog, small: bool = False) -> Grid | None:
    """The grid, or None with at least one problem added to the document.

    ``small``: the demonstration size, whose ``small`` keys replace those of the file.  Both sizes are checked.
    """
    given = keys_of(document, "methods, datasets, ipc and a teacher")
    if given is None:
        return None
    data = {"name": document.name} | given
    full = _grid(document, data, catalog)
    if full is None:
        return None
    changes = data.pop("small", None)
    if changes is None:
        if small:
            fix = f"use {document.name}, or add `small:`"
            document.problem((), f"The grid {document.name} has no demonstration size.", fix)
        return full
    if "small" in changes:
        document.problem(("small", "small"), "The demonstration size has no demonstration size.", "remove it")
    heading = " ".join(filter(None, ("Demonstration size: shows the path, not the claim.", full.description)))
    changed = data | {"name": f"{full.name}-small", "description": heading} | changes
    reduced = _grid(document, changed, catalog, changes)
    return reduced if small or reduced is None else full


def _grid(
    document: Located, data: dict[str, Any], catalog: Catalog, small: dict[str, Any] | None = None
) -> Grid | None:
    """One size of a grid; ``small``: those of its keys that are written below ``small``."""
    at_top = partial(written_at, small or {}, ("small",))
    wrong = check_structure(document, GridStructure, data, at_top)
    split: SourceSplit = "fit" if data.get("test_on") == "validation" else "train"
    base = {key: value for key, value in data.items() if key in PartStructure.model_fields}
    checks = [PartCheck(document, base, wrong, catalog, split, at_top)]
    for path, changes in items_of(data, "also", wrong):
        changed, at = base | changes, partial(_in_part, changes, path, at_top)
        unusable = check_structure(document, PartStructure, changed, at)
        checks.append(PartCheck(document, changed, unusable, catalog, split, at))
    parts = [check.fields() for check in checks]
    if not document.problems:
        _check_imported_sets(checks, small is not None)
    claim = _claim(document, data, parts, at_top, small is not None) if isinstance(data.get("claim"), dict) else None
    if isinstance(data.get("robustness"), list) and ("robustness",) not in wrong:
        check_repeats(document, data["robustness"], at_top(("robustness",)))
    for path, name in items_of(data, "robustness", wrong):
        with document.noting(at_top(path)):
            if name != CALIBRATION:
                corruption(name)
    if document.problems:
        return None
    head = {key: value for key, value in data.items() if key not in base and key not in ("also", "small", "claim")}
    head |= {"robustness": measures_of(data["robustness"])} if "robustness" in data else {}
    return Grid(
        **head,
        claim=claim,
        parts=tuple(Part(**fields) for fields in parts),
        text=document.text,
        source=document.source,
        small=small is not None,
    )


def _check_imported_sets(checks: list[PartCheck], small: bool) -> None:
    """Report names that stand for other sets in another place, and sets of a dataset or an IPC that is in no part.

    The sets of a name are numbered as repetitions, so that there must be one list of them; a demonstration size may
    leave some out.
    """
    places: dict[str, set[tuple[str, int]]] = {}
    for check in checks:
        for chosen in check.methods.values():
            pairs = {(dataset, ipc) for dataset in check.infos for _path, ipc in check.items("ipc")}
            places.setdefault(chosen.name, set()).update(pairs)
    first: dict[str, tuple[str, ...]] = {}
    for check in checks:
        for path, chosen in check.methods.items():
            if not chosen.sets:
                continue
            if first.setdefault(chosen.name, chosen.sets) != chosen.sets:
                fix = "list all sets of a name in one place, or use another name"
                check.problem(path, f"{chosen.name!r} stands for other sets above.", fix)
            for place, key in enumerate(() if small else chosen.sets):
                known = check.catalog.known_set(key)
                if known is not None and (known.data.name, known.ipc) not in places[chosen.name]:
                    fact = f"Set {key[:12]} is of {known.data.name} at IPC {known.ipc}, which are not in the grid."
                    check.problem((*path, SETS, place), fact, "add these to `datasets` and `ipc`, or remove the set")


def _claim(document: Located, data: dict[str, Any], parts: list[dict[str, Any]], at: At, small: bool) -> Claim | None:
    """The claim of a grid; a demonstration size may lack some of its methods."""
    given, at_claim = data["claim"], below("claim", at=at)
    wrong = check_structure(document, ClaimStructure, given, at_claim, "A claim")
    if wrong:
        return None
    methods = {chosen.name for part in parts for chosen in part["methods"]}
    for key in ("better", "than"):
        names = given.get(key, [])
        if bool(names) != (given["test"] == "better"):
            needs = "needs" if given["test"] == "better" else "takes no"
            document.problem(at_claim(()), f"The test {given['test']!r} {needs} methods in {key!r}.", _CLAIM_FIX)
        both = [(place, name) for place, name in enumerate(names) if key == "than" and name in given.get("better", [])]
        for place, name in both:
            document.problem(at_claim((key, place)), f"{name!r} is compared with itself.", "name it on one side")
        missing = [(place, name) for place, name in enumerate(names) if name not in methods]
        for place, name in missing if not small or len(missing) == len(names) else ():
            fix = did_you_mean(name, sorted(methods))
            document.problem(at_claim((key, place)), f"The grid has no method {name!r} to claim this of.", fix)
    return Claim.model_validate_json(json.dumps(given))


_CLAIM_FIX = "`test: better` compares `better: [...]` with `than: [...]`; the other tests compare all methods"


def measures_of(value: bool | list[str]) -> tuple[str, ...]:
    """The measures of ``robustness``: calibration, with those named or (true) the benchmark's; none for false."""
    named = STANDARD if value is True else value or ()
    return (CALIBRATION, *(name for name in KNOWN if name in named)) if named else ()


def _check_method(name: str, values: dict[str, Any]) -> None:
    """Raise for the name of no method; for what looks like an imported set, with the way to name those."""
    meant = name == IMPORTED or _KEY.fullmatch(name) or values.keys() & {"set", "key", "keys", IMPORTED}
    if name not in METHODS and meant:
        raise UnknownName(
            f"{name!r} is not a method; imported sets need a name for tables.",
            "write `{NAME: {sets: [KEY, ...]}}`, e.g. `{MTT: {sets: [d0b2947ae43f]}}`; `rd3 set list` shows the keys",
        )
    METHODS.get(name)


def _check_name_of_sets(name: str) -> None:
    """Raise for a name of imported sets that is a method's, or that tables cannot show."""
    if name in METHODS:
        raise BadValue(
            f"{name!r} is a method of RD3, whose sets the grid generates.",
            f"give the imported sets another name, such as '{name} (authors)'",
        )
    if not (name.isprintable() and name.strip() == name and 0 < len(name) <= _LONGEST_NAME):
        raise BadValue(f"{name!r} cannot name imported sets.", f"use 1 to {_LONGEST_NAME} printable characters")


def _in_part(changes: dict[str, Any], item: Path, at: At, path: Path) -> Path:
    """The location of a value of a part: in the item of ``also`` if that has its key, else at the top level."""
    return at(written_at(changes, item, path))


@dataclass
class PartCheck:
    """Checks the names and values of one part of a grid.

    Paths are locations in ``data``: those in ``wrong`` have another structure than expected and are left out.
    """

    document: Located
    data: dict[str, Any]
    wrong: set[Path]
    catalog: Catalog
    split: SourceSplit
    """The images that sets are generated from."""
    at: At = as_is
    of_sweep: bool = False
    """A sweep takes no imported sets, and has no cells that would say that a loss is unsupported."""

    def fields(self) -> dict[str, Any]:
        """Check everything; returns the fields of the :class:`Part`."""
        for key, value in self.data.items():
            if isinstance(value, list) and (key,) not in self.wrong:
                check_repeats(self.document, value, self.at((key,)))
        self._check_settings()
        self._check_protocols()
        self._check_paper()
        return self.data | {
            "methods": tuple(self.methods.values()),
            "datasets": tuple(self.infos),
            "teacher": self.roles,
            "label_teachers": self.label_teachers,
            "students": tuple(self.students) or None,
            "protocols": tuple(self.protocols.values()),
            "vary": self.varied,
        }

    def problem(self, path: Path, message: str, fix: str = "") -> None:
        self.document.problem(self.at(path), message, fix)

    def noting(self, path: Path) -> AbstractContextManager[None]:
        """Report an :class:`RD3Error` as a problem at ``path``, except for errors of a store."""
        return self.document.noting(self.at(path))

    def items(self, key: str) -> Iterator[tuple[Path, Any]]:
        return items_of(self.data, key, self.wrong)

    @cached_property
    def infos(self) -> dict[str, DatasetInfo]:
        """Facts of the known datasets."""
        return self._known_items("datasets", partial(self.catalog.dataset, split=self.split))

    @cached_property
    def students(self) -> list[str]:
        """The known students; none: each teacher's network."""
        return list(self._known_items("students", network_info))

    @cached_property
    def methods(self) -> dict[Path, Chosen]:
        """The known methods and names of imported sets, by the location of their values."""
        return self._known_choices("methods", self._method_or_sets)

    @cached_property
    def protocols(self) -> dict[Path, Chosen]:
        """The known protocols, by the location of their values."""
        if "protocols" not in self.data:
            return {("protocols", place): each for place, each in enumerate(Part.model_fields["protocols"].default)}
        return self._known_choices("protocols", self._protocol)

    def _known_items(self, key: str, look_up: Callable[[str], T]) -> dict[str, T]:
        found = {}
        for path, name in self.items(key):
            with self.noting(path):
                found[name] = look_up(name)
        return found

    def _known_choices(self, key: str, look_up: Callable[[Path, str, dict[str, Any]], Chosen]) -> dict[Path, Chosen]:
        found = {}
        for path, item in self.items(key):
            [(name, values)] = item.items() if isinstance(item, dict) else [(item, {})]
            with self.noting(path):
                found[*path, name] = look_up((*path, name), name, values)
        return found

    def _protocol(self, _path: Path, name: str, values: dict[str, Any]) -> Chosen:
        self.catalog.protocol(name)
        return Chosen(name=name, values=values)

    def _method_or_sets(self, path: Path, name: str, values: dict[str, Any]) -> Chosen:
        if SETS not in values:
            _check_method(name, values)
            return Chosen(name=name, values=values)
        if self.of_sweep:
            raise BadValue(
                "A sweep takes no imported sets, which may have been made from the validation images.",
                "sweep with a method, and evaluate imported sets under the winner: `protocols: [WINNER]` in a grid",
            )
        _check_name_of_sets(name)
        for other in values.keys() - {SETS}:
            self.problem((*path, other), "Imported sets have no settings.", f"remove it, or remove {SETS!r}")
        return Chosen(name=name, values={SETS: self._set_keys((*path, SETS), values[SETS])})

    def _set_keys(self, path: Path, given: Any) -> list[str]:
        """The full keys of imported sets."""
        if not isinstance(given, list) or not given:
            self.problem(path, f"Expected a list of keys of imported sets, got {what(given)}.", _SETS_FIX)
            return []
        found: dict[str, int] = {}
        for place, key in enumerate(given):
            with self.noting((*path, place)):
                full = self._imported_set(key).key
                if full in found:
                    raise BadValue(f"This is set {full[:12]} again, which is number {found[full] + 1}.", "remove it")
                found[full] = place
        return list(found)

    def _imported_set(self, key: Any) -> SetRecipe:
        if not isinstance(key, str):
            raise BadValue(f"Expected the key of an imported set, got {what(key)}.", "put it in quotes")
        known = self.catalog.known_set(key)
        if known is None and self.catalog.ledger is None:
            raise BadValue("Imported sets are looked up in a ledger, and none is given.", "load the grid in a session")
        if known is None:
            raise UnknownName(f"There is no set {key!r} in the ledger.", _SETS_FIX)
        name = f"Set {known.key[:12]}"
        if not known.imported:
            raise BadValue(f"{name} was generated by {known.method}.", f"write `{known.method}` for its sets")
        if known.data.name in self.infos:
            check_known_set(known, name, self.infos[known.data.name])
        return known

    @cached_property
    def roles(self) -> dict[str, str]:
        """The known teacher role of each dataset."""
        given = self.data.get("teacher") if ("teacher",) not in self.wrong else None
        named: dict[str, tuple[Path, str]] = {str(path[-1]): (path, role) for path, role in self.items("teacher")}
        if isinstance(given, str):
            named = {dataset: (("teacher",), given) for dataset in self.infos}
        elif isinstance(given, dict):
            for dataset in given:
                with self.noting(("teacher", dataset)):
                    self.catalog.dataset(dataset)
            for dataset in self.infos:
                if dataset not in given:
                    self.problem(("teacher",), f"Dataset {dataset} has no teacher.", f"add `{dataset}: ROLE`")
        found = {}
        for dataset, (path, role) in named.items():
            if dataset in self.infos:
                with self.noting(path):
                    self.catalog.role(dataset, role)
                    found[dataset] = role
        return found

    @cached_property
    def label_teachers(self) -> tuple[str, ...]:
        """The known roles of the teachers that give soft labels together."""
        return tuple(
            self._known_items("label_teachers", lambda role: [self.catalog.role(one, role) for one in self.infos])
        )

    @cached_property
    def varied(self) -> dict[str, tuple[Any, ...]]:
        """Protocol fields with the values to vary."""
        found = {}
        for path, values in self.items("vary"):
            check_repeats(self.document, values, self.at(path))
            found[str(path[-1])] = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        return found

    @cached_property
    def frames(self) -> set[Frame]:
        """What the protocols are resolved for, as far as it is known."""
        labelling = {dataset: [*self.label_teachers, role][0] for dataset, role in self.roles.items()}
        networks = {dataset: self.catalog.role(dataset, role).network for dataset, role in labelling.items()}
        return {
            Frame.of(self.infos[dataset], ipc, student, network)
            for dataset, network in networks.items()
            for student in self.students or [network]
            for _path, ipc in self.items("ipc")
        }

    def is_right(self, path: Path, value: Any, mistakes: Callable[[], list[str]]) -> bool:
        """Whether a value is right; reports the mistakes that ``mistakes`` returns, or the error that it raises."""
        found: list[str] | None = None
        with self.noting(path):
            found = mistakes()
        if found:
            self.problem(path, f"{' / '.join(found)}, got {what(value)}.", point_for_comma(value))
        return found == []

    def _right(
        self, values: dict[str, Any], path: Path, mistakes: Callable[[str, Any], list[str]] = mistakes_in
    ) -> dict[str, Any]:
        """Those of several values by name in which ``mistakes`` finds none."""
        return {
            name: value
            for name, value in values.items()
            if self.is_right((*path, name), value, partial(mistakes, name, value))
        }

    def _check_settings(self) -> None:
        """Check the settings one by one, then the right ones together for every set."""
        for path, chosen in self.methods.items():
            if SETS in chosen.values:
                continue
            method = METHODS.get(chosen.name)()
            for info in self.infos.values():
                right = self._right(chosen.values, path, partial(mistakes_in_setting, chosen.name, info))
                for _path, ipc in self.items("ipc") if right else ():
                    with self.noting(path):
                        settings = self.catalog.settings(chosen.name, info, ipc, right)
                        check_start(method.needs(info, settings, "").init, info, ipc, self.catalog.settings)

    def _check_protocols(self) -> None:
        """Check the fields one by one, then the right ones together."""
        frames = self.frames or {ANY_FRAME}
        shared = {str(path[-1]): value for path, value in self.items("protocol")}
        self._check_twice(shared)
        right = self._right(self._supported(shared), ("protocol",))
        points: list[tuple[Path, dict[str, Any]]] = []
        for name, values in self.varied.items():
            for place, value in enumerate(values):
                path: Path = ("vary", name, place) if name in protocol_names() else ("vary", name)
                if self.is_right(path, value, partial(mistakes_in, name, value)):
                    points.append((path, {name: value}))
        for path, chosen in self.protocols.items():
            own = right | self._right(self._supported(chosen.values), path)
            at: Path = path if chosen.values or not shared else ("protocol",)
            for where, moved in [(at, {}), *points]:
                for frame in frames:
                    with self.noting(where):
                        resolved = self.catalog.evaluation(chosen.name, frame, own | moved)
                        info = self.infos.get(str(frame.case.dataset))
                        if info is not None:
                            resolved.require_fit(info.name, info.resolution, info.num_classes)

    def _supported(self, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` without a loss that the cells will say to be unsupported."""
        without = not self.of_sweep and unsupported_loss(values)
        return {name: value for name, value in values.items() if not (without and name == "loss")}

    def _check_paper(self) -> None:
        """Check that the paper prints these configurations."""
        for path, config in self.items("paper"):
            table = str(path[-1])
            if not configurations(table, ""):
                fix = f"use one of: {', '.join(printed_tables())}, or remove `paper`"
                self.problem(path, f"The paper's Table {table} prints no accuracies.", fix)
            elif not configurations(table, config):
                message = f"The paper's Table {table} has no configuration that begins with {config!r}."
                self.problem(path, message, "see tracking/report/data/paper_results.csv")

    def _check_twice(self, shared: dict[str, Any]) -> None:
        """Report fields that are set in two places."""
        twice: list[tuple[Path, str]] = [(("vary", name), "protocol") for name in self.varied if name in shared]
        for path, chosen in self.protocols.items():
            twice += [((*path, name), "protocol") for name in chosen.values if name in shared]
            twice += [((*path, name), "vary") for name in chosen.values if name in self.varied]
        for path, other in twice:
            self.problem(path, f"This field is also set in '{other}'.", "remove it from one of the two")
