"""Parse a YAML document into a :class:`Sweep`; every mistake is reported with its location."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.grid import structure
from pipelines.grid.catalog import ANY_FRAME, Catalog, Frame
from pipelines.grid.check import PartCheck
from pipelines.grid.located_yaml import Located, Path
from pipelines.grid.structure import Choice, Choices, Count, Fields, Name, Seed, Seeds, Sentence, Structure
from pipelines.grid.values import Chosen
from pipelines.sweep.space import SpaceCheck
from pipelines.sweep.values import Dimension, PrunerName, SamplerName, Sweep, labelled
from rd3.datasets import DatasetInfo
from rd3.protocol import EvalProtocol, applicable_values, merged, presets

SINGLE = {"datasets": "dataset", "ipc": "ipc", "students": "student", "protocols": "protocol"}
"""Keys that are lists in a grid and single values in a sweep."""


class TestStructure(Structure):
    """The keys of ``test``."""

    student_seeds: Seeds = []


class SweepStructure(Structure):
    """The keys of a sweep file; the defaults of those that may be missing are those of ``Sweep``."""

    name: Name
    description: str = ""
    methods: Choices
    dataset: str
    ipc: Count
    teacher: str
    protocol: Choice
    space: Annotated[Fields, Field(min_length=1)]
    trials: Count
    student: str = ""
    batch: Count = 1
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    validate_epochs: Count = 1
    seed: Seed = 0
    set_seed: Seed = 0
    student_seeds: Seeds = []
    test: Fields = {}
    test_on: Literal["validation"] = "validation"


_SPACE_FIX = "e.g. `lr: {{low: 1.0e-4, high: 1.0e-2, log: true}}`"
_LEAST = {"trials": 1, "batch": 1, "validate_epochs": 1, "seed": 0, "set_seed": 0}

SENTENCES: Mapping[str, Sentence] = {
    **structure.SENTENCES,
    **{
        f"{key} {kind}": Sentence(f"Expected an integer of at least {least}, got {{what}}.")
        for key, least in _LEAST.items()
        for kind in ("int_type", "greater_than_equal")
    },
    "too_short": Sentence("The list is empty.", "add at least one item"),
    "teacher string_type": Sentence("Expected a role, got {what}.", "e.g. `teacher: resnet18`"),
    "space dict_type": Sentence("Expected protocol fields with ranges or choices, got {what}.", _SPACE_FIX),
    "space too_short": Sentence("Expected protocol fields with ranges or choices, got nothing.", _SPACE_FIX),
    "test dict_type": Sentence("Expected student_seeds, got {what}.", "e.g. {{student_seeds: [0]}}"),
    "test_on literal_error": Sentence(
        "A sweep is tuned on validation images, got {what}.", "remove it; only the winner is tested, once"
    ),
}


def check_sweep(document: Located, catalog: Catalog) -> Sweep | None:
    """The sweep, or None with at least one problem added to the document."""
    required = [key for key, field in SweepStructure.model_fields.items() if field.is_required() and key != "name"]
    given = structure.keys_of(document, ", ".join(required))
    if given is None:
        return None
    data = {"name": document.name} | given
    wrong = structure.check_structure(document, SweepStructure, data, owner="A sweep", sentences=SENTENCES)
    right = {key: value for key, value in data.items() if key not in {path[0] for path in wrong}}
    test = right.get("test", {})
    _check_test(document, test)
    check = PartCheck(document, _as_part(data, right), wrong, catalog, "fit", _at, of_sweep=True)
    part = check.fields()
    space = _space(check, right)
    _preset_names(document, data["name"], check)
    if document.problems:
        return None
    fields = {key: value for key, value in data.items() if key not in ("test", "test_on")} | {
        "methods": part["methods"],
        "protocol": part["protocols"][0],
        "space": space,
    }
    seeds = {"test_seeds": test["student_seeds"]} if test else {}
    return Sweep(**fields, **seeds, text=document.text, source=document.source)


def _as_part(data: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """The sweep's set, teacher, student and protocol as a part of a grid, whose keys are lists."""
    same = {key: data[key] for key in ("methods", "teacher", "student_seeds") if key in data}
    return same | {many: [right[one]] for many, one in SINGLE.items() if one in right}


def _at(path: Path) -> Path:
    """The location of a value of the part in the sweep."""
    return (SINGLE[str(path[0])], *path[2:]) if path and path[0] in SINGLE else path


def _check_test(document: Located, test: dict[str, Any]) -> None:
    structure.check_structure(document, TestStructure, test, structure.below("test"), "A sweep's test", SENTENCES)
    if isinstance(test.get("student_seeds"), list):
        structure.check_repeats(document, test["student_seeds"], ("test", "student_seeds"))


def _space(check: PartCheck, right: dict[str, Any]) -> tuple[Dimension, ...]:
    """The space, checked against the base protocol resolved for the set."""
    frame, chosen = next(iter(check.frames), None), next(iter(check.protocols.values()), None)
    if frame is not None and chosen is not None and not check.document.problems:
        resolve = partial(_resolved, check.catalog, chosen, frame, check.infos[str(frame.case.dataset)])
    else:  # any valid protocol, to check the space of a file whose own protocol is invalid
        resolve = partial(_resolved, Catalog(), Chosen(name="rd3"), ANY_FRAME, None)
    size = frame.set_size if frame is not None else None
    space = SpaceCheck(check, resolve, size, chosen.values if chosen is not None else {})
    return space.dimensions(right.get("space", {}), right.get("sampler"), right.get("trials"))


def _resolved(
    catalog: Catalog, chosen: Chosen, frame: Frame, info: DatasetInfo | None, point: dict[str, Any]
) -> EvalProtocol:
    """The protocol of a trial at a point; raises also if it does not fit the dataset, if one is given."""
    values = applicable_values(catalog.protocol(chosen.name), frame.case, merged(chosen.values, point))
    found = catalog.evaluation(chosen.name, frame, values)
    if info is not None:
        found.require_fit(info.name, info.resolution, info.num_classes)
    return found


def _preset_names(document: Located, name: str, check: PartCheck) -> None:
    """Check that no winner would have the name of a built-in protocol or of the base protocol."""
    winners = [f"{name}-{label}" for label in labelled(check.methods.values())]
    for winner in winners:
        if winner in presets():
            message = f"The winner would have the name {winner}, which is a built-in protocol."
            document.problem(("name",), message, "rename the sweep")
    for base in check.protocols.values():
        if base.name in winners:
            message = f"The base protocol {base.name} has the name that the winner would have."
            document.problem(("protocol",), message, "rename the sweep")
