"""YAML with locations: plain data, the line of every value, and all mistakes of a file in one error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from rd3.errors import RD3Error, StoreError
from rd3.values import is_utf8
from rd3.yaml_numbers import NumbersLoader

Path = tuple[str | int, ...]
"""Keys and indices that lead to a value: ``("methods", 1, "sre2l", "iterations")``."""


def place_text(path: Path) -> str:
    """A path as text: ``methods[1].sre2l.iterations``; ``the file`` for the empty path."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "the file"


class Problem(NamedTuple):
    """One mistake in a grid or sweep file."""

    place: str
    message: str
    """A sentence with the expected and the actual value."""
    fix: str = ""
    line: int | None = None
    """1-based line number, if known."""

    def __str__(self) -> str:
        at = f"{self.place} (line {self.line})" if self.line else self.place
        return f"{at}: {self.message}" + (f" Fix: {self.fix}" if self.fix else "")


class GridErrors(RD3Error):
    """All mistakes of one file of a kind (grid, sweep), in the order of its lines; ``source``: its path or name."""

    def __init__(self, source: str, problems: Iterable[Problem], kind: str = "grid"):
        self.source = source
        self.kind = kind
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        count = len(self.problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{kind.capitalize()} {source} has {count} mistake{'s' if count != 1 else ''}:\n{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.problems, self.kind)


@dataclass
class Located:
    """A YAML document as plain data, with the line of every value and the problems found."""

    text: str
    name: str = ""
    """Name of the grid or sweep, where the document itself gives none."""
    source: str = ""
    """What the user called the file: its path, or the name of a built-in one; empty for a text."""
    kind: str = "grid"
    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[Path] = field(default_factory=set)
    """Places of values that cannot be read: one problem is enough for each."""

    def line(self, path: Path) -> int | None:
        """The line of a value, or of its nearest enclosing value."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def problem(self, path: Path, message: str, fix: str = "") -> None:
        """Add a problem, unless it is already recorded or its value could not be read."""
        if any(path[:length] in self.unreadable for length in range(1, len(path) + 1)):
            return
        found = Problem(place_text(path), message, fix, self.line(path))
        if found not in self.problems:
            self.problems.append(found)

    def cannot_read(self, path: Path, message: str, fix: str) -> None:
        """Add the only problem of a value that has no meaning."""
        self.problem(path, message, fix)
        self.unreadable.add(path)

    @contextmanager
    def noting(self, path: Path) -> Iterator[None]:
        """Add an :class:`RD3Error` as a problem at ``path``; errors of a store are not the file's and are raised."""
        try:
            yield
        except StoreError:
            raise
        except RD3Error as error:
            self.problem(path, error.message, error.fix)


def problem_in(text: str, part: int, path: Path, message: str, fix: str = "", *, small: bool = False) -> Problem:
    """A problem found after parsing, at the place where the value was written.

    A grid file has keys at its top level, part 0; each item of ``also`` is a further part, which overrides some of
    them.  ``small`` overrides keys of the top level for the demonstration size of the grid.  ``path`` is relative to
    the part; ``small``: the problem is in the demonstration size.
    """
    document = read_located(text)
    data = document.data if isinstance(document.data, dict) else {}
    overrides = data.get("small", {}) if small else {}
    also = (data | overrides).get("also", [])
    own = bool(part) and part <= len(also) and path[0] in also[part - 1]
    whole = written_at(overrides, ("small",), ("also", part - 1, *path) if own else path)
    return Problem(place_text(whole), message, fix, document.line(whole))


def written_at(overrides: Mapping[str, Any], overrides_at: Path, path: Path) -> Path:
    """Where a value was written: below ``overrides_at`` if the overrides there have its key, else at the top level."""
    return (*overrides_at, *path) if path and path[0] in overrides else path


class _Loader(NumbersLoader):
    """Safe YAML loader, except that ``1e-3`` and ``1.5e3`` are numbers and a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in NumbersLoader.yaml_implicit_resolvers.items()
}
_FIXES = {
    "could not find expected ':'": "write `key: value`, with a space after the colon",
    "'\\t'": "indent with spaces",
    "but found another document": "put every document into a file of its own",
}
"""Parts of the loader's messages and what to do."""
_OCTAL, _BASE_60 = re.compile(r"[-+]?0[0-7_]+"), re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")
"""Numbers as YAML 1.1 has them: ``010`` is 8, and ``1:30`` is 90."""
_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
"""A number with a decimal comma, and one whose comma may be for thousands."""


def read_located(text: str, name: str = "", source: str = "", kind: str = "grid") -> Located:
    """Read one YAML document; a syntax error is added to its problems."""
    found = Located(text, name, source, kind)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            found.data = _plain(loader, node, (), found, set())
    except yaml.MarkedYAMLError as error:
        detail = error.problem or error.context or "unreadable"
        fix = next((fix for part, fix in _FIXES.items() if part in f"{error.context} {detail}"), "")
        no_colon = "expected ':'" in detail  # it is missing where the key is, and noticed later
        mark = (error.context_mark if no_colon else None) or error.problem_mark or error.context_mark
        found.problems.append(Problem("the file", f"Invalid YAML: {detail}.", fix, mark.line + 1 if mark else None))
    except yaml.YAMLError as error:
        found.problems.append(Problem("the file", f"Invalid YAML: {str(error).splitlines()[0]}."))
    except RecursionError:
        found.problems.append(Problem("the file", "Invalid YAML: values are nested too deeply."))
    return found


def _decimal_comma(before: yaml.Node, key: yaml.Node, value: yaml.Node) -> str:
    """The number with a decimal comma that YAML reads as two entries, as in ``{lr: 1,5e-3}``; empty for others."""
    adjoining = key.start_mark.index == before.end_mark.index + 1
    text = f"{before.value},{key.value}"
    return text if adjoining and not value.value and _COMMA.fullmatch(text) else ""


def point_for_comma(value: Any) -> str:
    """The fix for a number with a comma, where three digits after it may be thousands; empty for another value."""
    if not isinstance(value, str) or not _COMMA.fullmatch(value):
        return ""
    thousands = f", or {value.replace(',', '')} if it is that" if _THOUSANDS.fullmatch(value) else ""
    return f"write {value.replace(',', '.')}{thousands}"


def _half_character(what: str, value: str) -> tuple[str, str]:
    """Message and fix for an escape such as ``\\ud83d``: JSON writes an emoji as two, which YAML does not join."""
    message = f"{what} {value[:40]!r} contains half of a character (an unpaired surrogate)."
    return message, "write the character itself"


def _plain(loader: yaml.SafeLoader, node: yaml.Node, path: Path, found: Located, seen: set[int]) -> Any:
    """The node as plain data; records lines, and problems with keys and numbers that are not what they seem."""
    found.lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:  # an alias is the same node as its anchor, so a small text could expand without bound
        found.cannot_read(path, "Aliases (*name) are not supported.", "write the value in full, or use 'also'")
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*path, place), found, seen) for place, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for before, (key_node, value_node) in zip((None, *node.value), node.value, strict=False):
            key = key_node.value
            if before and (number := _decimal_comma(before[1], key_node, value_node)):
                message = f"{number} is not one number in YAML, where a comma ends the entry."
                found.cannot_read((*path, before[0].value), message, point_for_comma(number))
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                merge = key_node.tag == "tag:yaml.org,2002:merge"
                fix = "write the values in full, or use 'also'" if merge else "put it in quotes"
                shown = f"Key {key!r}" if isinstance(key_node, yaml.ScalarNode) else "A key in brackets or braces"
                found.problem(path, f"{shown} is not a string.", fix)
                continue
            if not is_utf8(key):
                found.problem(path, *_half_character("Key", key))
                continue
            found.lines[*path, key] = key_node.start_mark.line + 1
            if key in values:
                found.problem((*path, key), f"Duplicate key {key!r}.", "remove one of them")
            values[key] = _plain(loader, value_node, (*path, key), found, seen)
        return values
    try:
        value = loader.construct_object(node)
        readable = value is None or isinstance(value, str | int | float)  # unlike `!!binary` and `!!timestamp`
    except (ValueError, LookupError, AttributeError):  # such as `!!int text`, `!!bool text` and `!!timestamp text`
        readable = False
    is_number = readable and isinstance(value, int | float) and not isinstance(value, bool)
    message, fix = "", "write a number, or put it in quotes"
    if not readable:
        message = f"Cannot read the value {str(node.value)[:40]!r}."
    elif isinstance(value, str) and not is_utf8(value):
        message, fix = _half_character("Text", value)
    elif isinstance(value, float) and not math.isfinite(value):
        message = f"{node.value} is not a finite number."
    # What is larger is refused by its field, and may have more digits than Python prints.
    elif is_number and abs(value) < 2**63 and (_OCTAL.fullmatch(node.value) or _BASE_60.fullmatch(node.value)):
        base = 60 if ":" in node.value else 8
        decimal = re.sub("^([-+]?)0+(?=.)", r"\1", node.value.replace("_", ""))
        meant = dict.fromkeys([decimal, str(value)] if base == 8 else [str(value)])
        message = f"{node.value} is {value} in YAML, which reads it in base {base}."
        fix = f"write {' or '.join(meant)}, or put it in quotes"
    if message:
        found.cannot_read(path, message, fix)
        return None
    return value
