"""Consoles for terminals and logs, on which text from outside stays text.

Paths, names of plugins and messages of other programs may contain ``[red]``, ``:smile:`` or escape sequences.  None of
it is markup here, and control characters are shown as ``\ufffd``.
"""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` without control characters, except tabs and line breaks."""
    return _CONTROL.sub("\ufffd", text)


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
