"""``rd3 list``: available methods, datasets, networks, protocols and more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pipelines.commands._show import show_table
from pipelines.settings import session
from rd3.errors import UnknownName
from rd3.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from rd3.protocol import Preset

Row = dict[str, Any]


def first_line(text: str | None) -> str:
    """The first line of a docstring."""
    return (text or "").strip().split("\n")[0]


def methods() -> list[Row]:
    from rd3.methods import METHODS

    rows = [
        {"name": name, "version": METHODS.get(name).version, "summary": first_line(METHODS.get(name).__doc__)}
        for name in METHODS
    ]
    return rows + [{"name": name, "version": None, "summary": why} for name, why in broken(METHODS)]


def broken(registry: Registry[Any]) -> list[tuple[str, str]]:
    """(name, reason) of registered modules that fail to import."""
    return [(name, f"broken: {why}") for name, why in registry.broken().items()]


def datasets() -> list[Row]:
    from rd3.datasets import SOURCES, dataset_info, dataset_names

    roots = session().roots
    infos = [dataset_info(name, roots) for name in dataset_names(roots)]
    rows = [
        {
            "name": info.name,
            "classes": info.num_classes,
            "train": info.train_count,
            "test": info.test_count,
            "resolution": info.resolution,
            "subset_of": info.parent,
            "source": info.source,
        }
        for info in infos
    ]
    return rows + [dict.fromkeys(rows[0]) | {"name": name, "source": why} for name, why in broken(SOURCES)]


def networks() -> list[Row]:
    from rd3.models import NETWORKS, network_info

    rows = [
        {"name": name, "summary": network_info(name).summary, "at": _resolutions(network_info(name).resolutions)}
        for name in NETWORKS.names()
    ]
    return rows + [{"name": name, "summary": why, "at": ""} for name, why in broken(NETWORKS)]


def _resolutions(notes: Mapping[int, str]) -> str:
    return "; ".join(f"{side}: {note}" if note else str(side) for side, note in notes.items())


def protocols() -> list[Row]:
    from rd3.protocol import presets, user_presets

    return [
        {
            "name": preset.name,
            "epochs": _epochs(preset),
            "reduces": preset.reduces,
            "source": preset.source,
            "incomplete": "; ".join(preset.incomplete),
        }
        for preset in {**user_presets(session().presets), **presets()}.values()
    ]


def _epochs(preset: Preset) -> int | str:
    """Epochs of all students, separately for students with the teacher's network and others, or all by rules."""
    if any("epochs" in rule.then for rule in preset.rules):
        return f"{', '.join(str(epochs) for epochs in sorted(preset.possible_values('epochs')))} (by rules)"
    if "epochs" in preset.all:
        epochs: int = preset.all["epochs"]
        return epochs
    same, other = preset.same_network.get("epochs", "?"), preset.other_network.get("epochs", "?")
    return f"{same} (same network as the teacher), {other} (another)"


def summaries(module: str, name: str) -> list[Row]:
    """What is in a registry, the variable ``name`` of a module; for what is unsupported or fails to import, why."""
    registry = getattr(import_module(module), name)
    rows = [{"name": each, "summary": first_line(registry.get(each).__doc__)} for each in registry]
    without = [*broken(registry), *((each, f"unsupported: {why}") for each, why in registry.unsupported().items())]
    return rows + [{"name": each, "summary": why} for each, why in without]


def grids() -> list[Row]:
    from pipelines.grid.files import OTHER_NAMES, load_grid, shipped_grids

    found = {name: load_grid(name).description for name in shipped_grids()}
    found |= {name: f"The grid {grid}." for name, grid in OTHER_NAMES.items()}
    return [{"name": name, "description": description} for name, description in sorted(found.items())]


def sweeps() -> list[Row]:
    from pipelines.sweep.files import load_sweep, shipped_sweeps

    found = [load_sweep(name) for name in shipped_sweeps()]
    return [{"name": sweep.name, "description": sweep.description} for sweep in found]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "methods": methods,
    "datasets": datasets,
    "networks": networks,
    "protocols": protocols,
    "losses": partial(summaries, "rd3.losses", "LOSSES"),
    "augmentations": partial(summaries, "rd3.augmentations", "AUGMENTATIONS"),
    "tables": partial(summaries, "tracking.report.extra", "TABLES"),
    "grids": grids,
    "sweeps": sweeps,
}


def list_things(
    kind: Annotated[str, Argument(help=" | ".join(KINDS))],
    as_json: Annotated[bool, Option("--json", help="Print a JSON array of objects, each with a name.")] = False,
) -> None:
    """List methods, datasets, networks, protocols, losses, augmentations, report tables, grids or sweeps."""
    if kind not in KINDS:
        raise UnknownName(f"Cannot list {kind!r}.", did_you_mean(kind, list(KINDS)))
    show_table(KINDS[kind](), as_json=as_json)
