"""Command output: tables for people, JSON for programs, progress bars for long operations."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from errno import EACCES, EDQUOT, EEXIST, EISDIR, ENAMETOOLONG, ENOSPC, ENOTDIR, EPERM, EROFS
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer import Option

from pipelines.grid.located_yaml import point_for_comma, read_located
from pipelines.terminal import PlainColumn, PlainConsole
from rd3.errors import BadValue, RD3Error, StoreError

if TYPE_CHECKING:
    from pipelines.settings import Session
    from rd3.inputs.notes import Note
    from rd3.store import Entry

_ENDLESS = 10_000
"""Width of tables in a pipe or a file, in characters."""
_UNUSABLE = {EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EEXIST, ENOTDIR, EISDIR, ENAMETOOLONG}
"""Errors of paths that users give, and of full or read-only disks; any other ``OSError`` is a bug."""
JsonOption = Annotated[bool, Option("--json", help="Print a JSON array.")]
console = PlainConsole(width=None if sys.stdout.isatty() else _ENDLESS, soft_wrap=True)
"""Output for people.  Lines are left to the terminal to wrap, so that paths and commands can be copied."""
stderr = PlainConsole(stderr=True, soft_wrap=True)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Report an :class:`RD3Error` as one sentence and one fix on stderr, and exit with its exit code."""
    try:
        yield
        return
    except RD3Error as error:
        found = error
    except OSError as error:
        if error.errno not in _UNUSABLE:
            raise
        path = error.filename2 or error.filename or "a file"
        found = StoreError(f"Cannot use {path}: {error.strerror}.", "free or repair it, or give another path")
    stderr.print(f"{type(found).__name__}:", style="bold red", end=" ")
    stderr.print(found.message)
    if found.fix:
        stderr.print("Fix:", style="bold", end=" ")
        stderr.print(found.fix)
    raise SystemExit(found.exit_code)


def show_note(note: Note) -> None:
    """Print what was found in an input."""
    if note.doubtful:
        console.print("warning:", style="bold yellow", end=" ")
    console.print(" ".join(note.text.split()))  # a name from a file must not begin a line


def ledger_line(here: Session) -> str:
    """The ledger a command has read; helps users who are in a different folder from where they ran RD3."""
    line = f"ledger {here.artifacts}"
    if here.home.is_dir():
        return line
    return f"{line}; RD3's home {here.home} does not exist: change to the folder where you ran RD3, or set RD3_HOME"


def show_table(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, empty: str = "") -> None:
    """Print rows with equal keys as a table or as a JSON array of objects.

    ``empty``: where rows were searched for, shown if there are none.
    """
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=1, default=str) + "\n")
        return
    if not rows:
        console.print(f"no results yet: {empty}" if empty else "no results yet")
        return
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table, soft_wrap=False)


def show_entries(here: Session, kind: str, row: Callable[[Entry], dict[str, Any]], as_json: bool) -> None:
    """Print the ledger's entries of one kind, by key; ``row`` gives the columns after the name."""
    entries = (here.ledger.find(kind, key) for key in sorted(here.ledger.keys(kind)))
    rows = [{"name": entry.key[:12], **row(entry)} for entry in entries if entry is not None]
    show_table(rows, as_json=as_json, empty=ledger_line(here))


def source_text(entry: Entry) -> str:
    """``imported``, or the number of epochs of a training, for the entry of a teacher or backbone."""
    return "imported" if entry.recipe["weights"] else f"{entry.recipe['training']['epochs']} epochs here"


def _cell(value: Any) -> str:
    """Floats to two decimals, small ones to two significant digits."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.2g}"
    return "" if value is None else str(value)


def show_reasons(found: Iterable[tuple[str, str, str]]) -> None:
    """Print the (status, reason, label) of unfinished recipes, one line per reason with the number of recipes."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for status, reason, label in found:
        grouped.setdefault((status, reason), []).append(label)
    for (status, reason), labels in grouped.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        console.print(f"{status}: {labels[0]}{more}: {reason}")


def parse_fields(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Parse ``name=value`` arguments; values are read as in grid files (``0.5``, ``1e-3``, ``true``, ``[1, 2]``)."""
    fields: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadValue(f"Expected NAME=VALUE, got {pair!r}.", "for example: temperature=4")
        document = read_located(value)
        for problem in document.problems:
            fix = problem.fix or "use a number or a word, or put it in quotes"
            raise BadValue(f"Cannot read the value in {pair!r}: {problem.message.rstrip('.')}.", fix)
        if fix := point_for_comma(document.data):
            raise BadValue(f"Expected a number in {pair!r}, got one with a comma.", fix)
        fields[name] = document.data
    return fields


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float, str], None]]:
    """A progress bar with an ETA; yields the function to call with (fraction, note)."""
    columns = (
        PlainColumn("{task.description}"),
        BarColumn(),
        PlainColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        PlainColumn("ETA"),
        TimeRemainingColumn(),
        PlainColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=PlainConsole(stderr=True)) as bar:
        task = bar.add_task(label, total=1.0, note="")

        def show(fraction: float, note: str = "") -> None:
            bar.update(task, completed=fraction, note=note)

        try:
            yield show
        except BaseException:
            bar.live.transient = True  # the error is the last word, without half a bar above it
            raise
