"""``rd3 list``: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipelines.commands._show import show_table
from pipelines.settings import session
from rd3.errors import UnknownName
from rd3.registry import did_you_mean

Row = dict[str, Any]


def first_line(text: str | None) -> str:
    """The card's first sentence."""
    return (text or "").strip().split("\n")[0]


def methods() -> list[Row]:
    from rd3.methods import METHODS

    rows = [
        {"name": name, "version": METHODS.get(name).version, "summary": first_line(METHODS.get(name).__doc__)}
        for name in METHODS
    ]
    return rows + [
        {"name": name, "version": None, "summary": f"broken plugin: {why}"} for name, why in METHODS.broken().items()
    ]


def datasets() -> list[Row]:
    from rd3.datasets import dataset_info, dataset_names

    roots = session().roots
    infos = [dataset_info(name, roots) for name in dataset_names(roots)]
    return [
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


def networks() -> list[Row]:
    from rd3.models import network_info, network_names

    return [
        {"name": name, "summary": network_info(name).summary, "at": _resolutions(network_info(name).resolutions)}
        for name in network_names()
    ]


def _resolutions(notes: dict[int, str]) -> str:
    return "; ".join(f"{side}: {note}" if note else str(side) for side, note in notes.items())


def protocols() -> list[Row]:
    from rd3.protocol import presets, user_presets

    return [
        {"name": preset.name, "epochs": preset.all["epochs"], "reduces": preset.reduces, "source": preset.source}
        for preset in {**user_presets(session().presets), **presets()}.values()
    ]


def losses() -> list[Row]:
    from rd3.losses import LOSSES

    return [{"name": name, "summary": first_line(LOSSES.get(name).__doc__)} for name in LOSSES]


def grids() -> list[Row]:
    from pipelines.grid import load_grid, shipped_grids

    found = [load_grid(name) for name in shipped_grids()]
    return [{"name": grid.name, "description": grid.description} for grid in found]


def sweeps() -> list[Row]:
    from pipelines.sweep.files import load_sweep, shipped_sweeps

    found = [load_sweep(name) for name in shipped_sweeps()]
    return [{"name": sweep.name, "description": sweep.description} for sweep in found]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "methods": methods,
    "datasets": datasets,
    "networks": networks,
    "protocols": protocols,
    "losses": losses,
    "grids": grids,
    "sweeps": sweeps,
}


def add_to(app: typer.Typer) -> None:
    @app.command("list")
    def list_things(
        kind: Annotated[str, typer.Argument(help=" | ".join(KINDS))],
        as_json: Annotated[bool, typer.Option("--json", help="An array of objects, each with a name.")] = False,
    ) -> None:
        """List methods, datasets, networks, protocols, losses, grids or sweeps."""
        if kind not in KINDS:
            raise UnknownName(f"There is nothing called {kind!r} to list.", did_you_mean(kind, list(KINDS)))
        show_table(KINDS[kind](), as_json=as_json)
