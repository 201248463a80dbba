"""The structure of a grid file as pydantic models, and pydantic's errors as sentences at the lines of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipelines.grid.located_yaml import Located, Path, place_text
from rd3.claims import Test
from rd3.registry import did_you_mean
from rd3.seeding import BIGGEST_SEED


class Structure(BaseModel):
    """Keys and types, without coercion."""

    model_config = ConfigDict(strict=True, extra="forbid", defer_build=True)


def _choice(item: Any) -> Any:
    """``name`` as ``{name: {}}``."""
    if isinstance(item, str):
        return {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise PydanticCustomError("choice", "a name, or one name with values")
    return item


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Fields = dict[str, Any]
Choice = Annotated[dict[str, Fields], BeforeValidator(_choice)]
"""A method or a protocol, alone or with values: ``name`` or ``{name: {field: value}}``."""
Roles = Annotated[dict[str, str], BeforeValidator(lambda value: {} if isinstance(value, str) else value)]
"""A teacher role, which is valid as it is, or one for each dataset."""
Count = Annotated[int, Field(ge=1, le=BIGGEST_SEED)]
Seed = Annotated[int, Field(ge=0, le=BIGGEST_SEED)]
Choices = Annotated[list[Choice], Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]
Counts = Annotated[list[Count], Field(min_length=1)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
Values = Annotated[list[Any], Field(min_length=1)]
Measures = Annotated[list[str], BeforeValidator(lambda value: [] if isinstance(value, bool) else value)]
"""``true`` for all, ``false`` for none, or names."""


class PartStructure(Structure):
    """The keys of a part; missing ones have the defaults of :class:`pipelines.grid.values.Part`, not these."""

    methods: Choices
    datasets: Names
    ipc: Counts
    teacher: Roles
    label_teachers: list[str] = []
    students: Names | None = None
    protocols: Choices = []
    protocol: Fields = {}
    set_seeds: Seeds = []
    student_seeds: Seeds = []
    vary: dict[str, Values] = {}
    setting: str = ""
    paper: Annotated[dict[str, str], Field(max_length=1)] = {}
    """Where the paper prints these results: a table, and the beginning of a configuration in it."""


class GridStructure(PartStructure):
    """The keys of a grid file: its first part, what concerns the whole grid, and what other parts change."""

    name: Name
    description: str = ""
    timing: Literal["shared", "exclusive"] = "shared"
    test_on: Literal["test", "validation"] = "test"
    claim: Fields | None = None
    keep_students: bool = False
    robustness: Measures = []
    embedding: bool = False
    also: list[Annotated[Fields, Field(min_length=1)]] = []
    small: Annotated[Fields, Field(min_length=1)] | None = None


class ClaimStructure(Structure):
    """The keys of a grid's claim."""

    text: str
    test: Test
    better: Names = []
    than: Names = []


class Sentence(NamedTuple):
    """What is wrong with a value, and the fix; in braces what :func:`_facts` finds out."""

    message: str
    fix: str = ""


_TEXT = Sentence("Expected text, got {what}.", "put it in quotes")
_VARIED = Sentence("Expected a list of values, got {what}.", "write `{key}: [...]`")
_CHANGES = Sentence("Expected keys that change the grid, got {what}.", "e.g. `methods: [random]`")
_PAPER = Sentence(
    "Expected a table with the beginning of a configuration, got {what}.", "e.g. `paper: {{'6': loss=KL}}`"
)

SENTENCES: Mapping[str, Sentence] = {
    "missing": Sentence("The key {key!r} is missing.", "add `{key}:`"),
    "extra_forbidden": Sentence("{owner} has no key {key!r} here.", "{nearest}"),
    "literal_error": Sentence("Expected {choices}, got {what}.", "{nearest}"),
    "string_type": Sentence("Expected a name, got {what}."),
    "string_pattern_mismatch": Sentence(
        "Invalid name {input!r}.", "write `name:` with letters, digits, '.', '_' and '-' alone"
    ),
    "int_type": Sentence("Expected an integer, got {what}."),
    "greater_than_equal": Sentence("Expected an integer of at least {ge}, got {input}."),
    "less_than_equal": Sentence("Expected an integer below 2^63, got {input}."),
    "bool_type": Sentence("Expected true or false, got {what}."),
    "list_type": Sentence("Expected a list, got {what}.", "write `{key}: [...]`"),
    "too_short": Sentence("The list is empty, so the grid would be empty.", "add at least one item"),
    **dict.fromkeys(("better too_short", "than too_short"), Sentence("The list is empty.", "name at least one method")),
    "choice": Sentence("Expected a name, or one name with values, got {what}."),
    "dict_type": Sentence(
        "Expected fields with values, got {what}.", "write `{key}: {{field: value}}`, or only the name"
    ),
    "protocol dict_type": Sentence("Expected fields with values, got {what}.", "write {instead}`field: value`"),
    "vary dict_type": Sentence("Expected fields with values, got {what}.", "write `field: [value, ...]`"),
    **dict.fromkeys(("vary.* list_type", "vary.* too_short"), _VARIED),
    "teacher dict_type": Sentence("Expected a role, or a role per dataset, got {what}.", "e.g. `teacher: resnet18`"),
    "teacher.* string_type": Sentence("Expected a role, got {what}."),
    **dict.fromkeys((f"{key} string_type" for key in ("name", "description", "text", "setting")), _TEXT),
    "claim dict_type": Sentence("Expected a claim, got {what}.", "write `claim: {{text: ..., test: better, ...}}`"),
    "also list_type": Sentence("Expected a list of partial grids, got {what}.", "start each with '- '"),
    **dict.fromkeys(("also.* dict_type", "also.* too_short", "small dict_type", "small too_short"), _CHANGES),
    "robustness list_type": Sentence("Expected true, false or a list of measures, got {what}.", "e.g. `[calibration]`"),
    "paper dict_type": _PAPER,
    "paper too_long": Sentence("Several tables are named.", "name one; add a part for each of the others"),
    "paper.* string_type": _PAPER,
}
"""Sentences by pydantic's type of error, or by location and type where the location has a sentence of its own."""


At = Callable[[Path], Path]
"""Location in the checked data to location in the file."""


def as_is(path: Path) -> Path:
    """For data that is the whole file."""
    return path


def below(*prefix: str | int, at: At = as_is) -> At:
    """For data that is the value at ``prefix``, itself in data located by ``at``."""
    return lambda path: at((*prefix, *path))


def check_structure(
    document: Located,
    model: type[Structure],
    data: Any,
    at: At = as_is,
    owner: str = "A grid",
    sentences: Mapping[str, Sentence] = SENTENCES,
) -> set[Path]:
    """Add the structural errors of ``data`` to the document.

    Returns their locations: a key, or a key and an item of its value that is wrong while the others can be used.
    """
    try:
        model.model_validate(data)
        return set()
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    for error in errors:
        loc, kind = error["loc"], error["type"]
        place = ".".join([str(loc[0]), *["*"] * (len(loc) - 1)]) if loc else ""
        message, fix = sentences.get(f"{place} {kind}") or sentences[kind]
        facts = _facts(model, error) | {"owner": owner}
        path = loc[:-1] if kind == "missing" else loc
        document.problem(at(path), message.format(**facts), fix.format(**facts))
    return {error["loc"][:2] for error in errors}


def _facts(model: type[Structure], error: ErrorDetails) -> dict[str, Any]:
    """What the sentences say about an error."""
    value, key = error["input"], str(error["loc"][-1]) if error["loc"] else ""
    kind = model.model_fields[key].annotation if key in model.model_fields else None
    choices = list(get_args(kind)) if get_origin(kind) is Literal else []
    return error.get("ctx", {}) | {
        "input": value,
        "what": what(value),
        "key": key,
        "choices": " or ".join(choices),
        "nearest": did_you_mean(str(value), choices) if choices else did_you_mean(key, list(model.model_fields)),
        "instead": f"`protocols: [{value}]`, or for individual fields " if isinstance(value, str) else "",
    }


def items_of(data: dict[str, Any], key: str, wrong: set[Path]) -> Iterator[tuple[Path, Any]]:
    """The items of a list or mapping whose structure is right, each with its location."""
    value = data.get(key)
    if not isinstance(value, list | dict) or (key,) in wrong:
        return
    for step, item in value.items() if isinstance(value, dict) else enumerate(value):
        if (key, step) not in wrong:
            yield (key, step), item


def check_repeats(document: Located, items: list[Any], path: Path) -> None:
    """Report items that equal an earlier one; 1 and 1.0 are equal."""
    seen: dict[Any, int] = {}
    for place, item in enumerate(items):
        number = isinstance(item, int | float) and not isinstance(item, bool)
        text = item if number else json.dumps(item, sort_keys=True, default=str)  # numbers are compared exactly
        if text in seen:
            message = f"Duplicate of {place_text((*path, seen[text]))}."
            document.problem((*path, place), message, "remove one of them")
        seen.setdefault(text, place)


def keys_of(document: Located, required: str) -> dict[str, Any] | None:
    """The values of a file by key, or None and a problem for one that is empty or something else than a mapping."""
    data = document.data
    if data is None:
        document.problem((), "The file is empty.", f"add {required}")
    elif not isinstance(data, dict):
        document.problem((), f"A {document.kind} must be a mapping, got {what(data)}.", "start with `methods:`")
    return data if isinstance(data, dict) else None


def what(value: Any) -> str:
    """Describe a YAML value in a message."""
    if value is None:
        return "nothing"
    kinds = {bool: "the boolean", str: "the text", int: "the number", float: "the number"}
    if type(value) in kinds:
        return f"{kinds[type(value)]} {json.dumps(value, ensure_ascii=False)[:60]}"
    return "a list" if isinstance(value, list) else "a mapping"
