"""Results as a folder: out of the ledger for others, and into ledger and MLflow from others or from ``rd3.run``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipelines.settings import Session
from rd3.errors import DataCorrupt, DataMissing
from rd3.recipe import KINDS, Recipe, canonical, from_json
from rd3.store import FolderStore
from tracking.store import TrackedStore


class Imported(NamedTuple):
    """One outcome: ``new`` is False where the ledger had it already."""

    kind: str
    key: str
    label: str
    new: bool


def export_results(recipes: Iterable[Recipe], folder: Path, session: Session, *, teachers: bool = False) -> int:
    """Put what is done of these recipes into a store folder that :func:`import_results` reads; how much is new there.

    Teachers are large and stay out unless wanted; what is there already stays.
    """
    own, target = TrackedStore(session.place), FolderStore(Path(folder).absolute())
    new = 0
    for recipe in recipes:
        if recipe.kind == "teacher" and not teachers:
            continue
        entry = own.find(recipe.kind, recipe.key)
        if entry is not None and target.find(recipe.kind, recipe.key) is None:
            target.put(entry, own.fetch(recipe.kind, recipe.key))
            new += 1
    return new


def import_results(folder: Path, session: Session) -> list[Imported]:
    """Every entry of a store folder, parents first, its files checked by hash; doing it again changes nothing."""
    foreign = FolderStore(Path(folder).absolute())
    paths = [path for kind in KINDS for path in sorted((foreign.root / "by-key" / kind).glob("*.json"))]
    if not paths:
        raise DataMissing(
            f"{folder} holds no results: there is no by-key/<kind>/<key>.json.",
            "give the folder that was --store of `python -m rd3.run`",
        )
    own = TrackedStore(session.place)
    imported = []
    for path in paths:
        kind, key = path.parent.name, path.stem
        entry = foreign.find(kind, key)
        recipe = from_json(canonical(entry.recipe))
        if (recipe.kind, recipe.key, entry.key) != (kind, key, key):
            raise DataCorrupt(
                f"{path} holds the recipe {recipe.kind} {recipe.key[:12]}, not {kind} {key[:12]}.",
                "make it again with `python -m rd3.run`",
            )
        if own.find(kind, key) is not None:
            imported.append(Imported(kind, key, recipe.label(), False))
            continue
        files = foreign.fetch(kind, key)
        made = foreign.find("set", recipe.set) or own.find("set", recipe.set) if kind == "evaluation" else None
        facts = {"method": made.recipe["method"], "ipc": made.recipe["ipc"]} if made else {}
        own.put(entry, files, facts)
        imported.append(Imported(kind, key, recipe.label(), True))
    return imported
