"""How commands print: a table for people, JSON for programs, a progress bar for what takes long."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rd3.errors import BadValue, RD3Error

if TYPE_CHECKING:
    from pipelines.settings import Session

_ENDLESS = 10_000
console = Console(highlight=False, width=None if sys.stdout.isatty() else _ENDLESS)
"""For people.  What is piped into a file or another program is not cut to the width of a terminal that is not there."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """An :class:`RD3Error` becomes one sentence on stderr, one fix, and its exit code."""
    try:
        yield
    except RD3Error as error:
        told = Console(stderr=True, highlight=False, soft_wrap=True)
        told.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        told.print(error.message, markup=False)
        if error.fix:
            told.print("[bold]Fix:[/] ", end="")
            told.print(error.fix, markup=False)
        raise SystemExit(error.exit_code) from None


def ledger_line(here: Session) -> str:
    """Which ledger a command has looked at, for somebody who may be in another folder than where RD3 was run."""
    told = f"ledger {here.artifacts}"
    if here.home.is_dir():
        return told
    return f"{told}; RD3's home {here.home} does not exist: go to the folder where you ran RD3, or set RD3_HOME"


def show_table(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, title: str | None = None, empty: str = ""
) -> None:
    """Rows with equal keys, as a table or as a JSON array of objects; ``empty`` says where none were found."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=1, default=str) + "\n")
        return
    if not rows:
        console.print(f"nothing yet: {empty}" if empty else "nothing here yet", markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    """As people write it: a fraction to two decimals, a small one to two digits."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 or not value else f"{value:.2g}"
    return "" if value is None else str(value)


def show_reasons(found: Iterable[tuple[str, str, str]]) -> None:
    """(status, reason, label) of what is not done, each reason once with the number of recipes it stands for."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for status, reason, label in found:
        grouped.setdefault((status, reason), []).append(label)
    for (status, reason), labels in grouped.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        console.print(f"{status}: {labels[0]}{more}: {reason}", markup=False, soft_wrap=True)


def parse_fields(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``name=value`` words of the command line; values are read as YAML scalars (``0.5``, ``true``, ``[1, 2]``)."""
    fields: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadValue(f"Got {pair!r} where NAME=VALUE was expected.", "write for example: temperature=4")
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadValue(f"Cannot read the value in {pair!r}.", "use a plain number or word, or quote it") from None
    return fields


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float, str], None]]:
    """A bar with ETA; yields the function to call with (fraction, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=1.0, note="")

        def show(fraction: float, note: str = "") -> None:
            bar.update(task, completed=fraction, note=note)

        yield show
