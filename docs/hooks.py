"""Hooks of mkdocs: pages generated from the code, and pages of the repository's root with their links adjusted.

Generated at every build: the command line's reference from its help texts, the registered methods, losses and
augmentations from docstrings and settings, and one page of API reference for each public module.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = ("methods", "losses", "augmentations", "datasets", "synthetic_set", "protocol", "recipe")
"""Public modules of ``rd3`` with a page of their own."""


PAGES = {
    "reference/command-line.md": lambda: command_line(),
    "reference/registered.md": lambda: registered(),
    "reference/python/rd3.md": lambda: public_names(),
    **{f"reference/python/{name}.md": lambda name=name: module_page(name) for name in MODULES},
    "changelog.md": lambda: from_root("CHANGELOG.md"),
    "contributing.md": lambda: from_root("CONTRIBUTING.md"),
    "reporting.md": lambda: from_root("SECURITY.md"),
}
"""Source path to the page's text; the files of these names only tell readers of the repository where to look."""


def on_page_read_source(page: Any, **_options: Any) -> str | None:
    """The generated text of a generated page, None for all others."""
    made = PAGES.get(page.file.src_uri)
    return made() if made else None


def on_page_markdown(markdown: str, **_options: Any) -> str:
    """Links to files outside ``docs/`` work in the repository; on the site their text remains."""
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)+(?:infra|benchmarks)/[^)]*\)", r"\1", markdown)


def on_page_content(html: str, **_options: Any) -> str:
    """Roles of reStructuredText in docstrings (``:func:`name```) are shown as the name alone."""
    return re.sub(r":(?:class|func|meth|mod|data|attr|exc|obj):<code>~?", "<code>", html)


def command_line() -> str:
    """Every command with its arguments and options, as ``--help`` shows them."""
    import typer
    from typer.cli import get_docs_for_click

    from pipelines.cli import app

    command = typer.main.get_command(app)
    _whole_summaries(command)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rd3")
    text = re.sub(r"<(\w+(?: \w+)?|list\[\w+\])>", r"\1", text)
    return text.replace("# `rd3`", "# Command line", 1)


def _whole_summaries(group: Any) -> None:
    """Lists of commands show the first paragraph of a command's help, not its first 45 characters."""
    for command in group.commands.values():
        command.short_help = (command.help or "").split("\n\n")[0]
        if hasattr(command, "commands"):
            _whole_summaries(command)


def from_root(name: str) -> str:
    """A page of the repository's root; its links become links between pages of the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/([^)]*)\)", r"](\1)", text).replace("](SECURITY.md)", "](reporting.md)")


def public_names() -> str:
    """The names that ``import rd3`` gives, wherever they are defined."""
    import rd3

    parts = ["# rd3", inspect.getdoc(rd3) or ""]
    for name in rd3.__all__:
        thing = getattr(rd3, name)
        if hasattr(thing, "__module__"):
            parts.append(f"::: {_home(thing)}.{name}")
    return "\n\n".join(parts) + "\n"


def module_page(name: str) -> str:
    """The public names of a module: those of its ``__all__``, or what it defines itself."""
    module = importlib.import_module(f"rd3.{name}")
    parts = [f"# rd3.{name}", inspect.getdoc(module) or ""]
    parts += [f"::: {path}" for path in _members(module)]
    return "\n\n".join(parts) + "\n"


def _members(module: Any) -> Iterator[str]:
    """Dotted paths of the documented classes and functions, in the order of ``__all__`` or of the file."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        thing = getattr(module, name)
        ours = getattr(thing, "__module__", "").startswith("rd3")
        if not ours or not (inspect.isclass(thing) or inspect.isfunction(thing)) or not thing.__doc__:
            continue
        if hasattr(module, "__all__") or thing.__module__ == module.__name__:
            yield f"{_home(thing)}.{thing.__name__}"


def _home(thing: Any) -> str:
    return thing.__module__


def registered() -> str:
    """Cards and settings of all methods, losses and augmentations."""
    from rd3.augmentations import AUGMENTATIONS
    from rd3.losses import LOSSES
    from rd3.methods import METHODS

    parts = ["# Method cards, losses, augmentations", "From docstrings and settings, as `rd3 method show` prints them."]
    for title, registry in (("Methods", METHODS), ("Losses", LOSSES), ("Augmentations", AUGMENTATIONS)):
        parts.append(f"## {title}")
        for name in registry:
            parts += [f"### `{name}`", inspect.cleandoc(registry.get(name).__doc__ or "")]
            parts += _settings_table(registry.get(name).Settings)
        parts += [f"### `{name}`\n\nUnsupported: {why}." for name, why in registry.unsupported().items()]
    return "\n\n".join(parts) + "\n"


def _settings_table(settings: Any) -> list[str]:
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = "by dataset" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return ["\n".join(rows)] if settings.model_fields else []
