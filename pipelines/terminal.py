"""Consoles for terminals and logs, on which text from outside stays text.

Paths, names of plugins and messages of other programs may contain ``[red]``, ``:smile:`` or escape sequences.  None of
it is markup here, and control characters are shown as ``\ufffd``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.text import Text

from rd3.errors import StoreError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` without control characters, those that reverse its direction included, except tabs and line breaks."""
    return _CONTROL.sub("\ufffd", text)


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Text for stdout that its encoding lacks becomes ``?``; raises :class:`StoreError` if stdout cannot be written.

    A reader that has closed its end of a pipe, such as ``head``, ends the command with exit code 1 and without a word.
    """
    for stream in (sys.stdout, sys.stderr):
        # The locale C has surrogateescape, which fails for text just as strict does.
        if getattr(stream, "errors", "") in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    outside, sys.stdout = sys.stdout, cast(TextIO, _Output(sys.stdout))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(outside)
        raise SystemExit(1) from None
    finally:
        sys.stdout = outside


class _Output:
    """A stream whose failed writes raise :class:`StoreError`; a broken pipe stays a ``BrokenPipeError``."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._errors():
            self._stream.flush()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard(self._stream)
            raise StoreError(
                f"The output cannot be written: {error.strerror}.", "free space there, or send it to another place"
            ) from None


def _discard(stream: TextIO) -> None:
    """Let what is left of the output go nowhere; else Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PlainConsole(Console):
    """A console that interprets neither markup, nor emoji codes, nor escape sequences; style with ``style=``."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class PlainColumn(TextColumn):
    """A column of a progress bar, such as ``"{task.description}"``."""

    def __init__(self, template: str):
        super().__init__(template, markup=False)

    def render(self, task: Task) -> Text:
        return Text(printable(self.text_format.format(task=task)))
