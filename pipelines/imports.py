"""Results travel: as a folder for others and from others or ``rd3.run``, and from one ledger to another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.settings import Session
from rd3 import parts
from rd3.errors import BadValue, DataCorrupt, DataMissing
from rd3.recipe import KINDS, Key, Recipe, canonical, from_json, to_json
from rd3.store import FolderStore, Store, write_atomically
from tracking.fields import parent_facts
from tracking.health import check_place
from tracking.place import Place
from tracking.store import TrackedStore


class Imported(NamedTuple):
    """One outcome: ``new`` is False where the ledger had it already, and for what is ``lacking`` (the reason)."""

    kind: str
    key: str
    label: str
    new: bool
    lacking: str = ""


def write_recipes(recipes: Sequence[Recipe], folder: Path) -> None:
    """A file of each for ``python -m rd3.run``, named so that they sort in this order."""
    for number, recipe in enumerate(recipes, 1):
        name = f"{number:0{len(str(len(recipes)))}}-{recipe.kind}-{recipe.key[:12]}.json"
        write_atomically(folder / name, to_json(recipe))


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
    """Every entry of a store folder, parents first, its files checked by hash; doing it again changes nothing.

    The folder may also hold the parts that a machine without network gave back (:mod:`rd3.parts`).
    """
    if not parts.holds_parts(folder):
        return _import_store(Path(folder).absolute(), folder, session)
    with tempfile.TemporaryDirectory(prefix="rd3-") as scratch:
        found = parts.unpack(folder, Path(scratch))
        names = [(*name.split(" "), reason) for name, reason in found.lacking.items()]
        imported = _import_store(found.store, folder, session) if found.entries else []
    return imported + [Imported(kind, key, "", False, reason) for kind, key, reason in names]


def _import_store(store: Path, folder: Path, session: Session) -> list[Imported]:
    """``folder`` is what the user named."""
    foreign = FolderStore(store)
    paths = [path for kind in KINDS for path in sorted((foreign.root / "by-key" / kind).glob("*.json"))]
    if not paths:
        raise DataMissing(
            f"{folder} holds no results: there is no by-key/<kind>/<key>.json.",
            "give the folder that was --store of `python -m rd3.run`, or the one with its results-*.zip",
        )
    check_place(session.place)
    names = [(path.parent.name, path.stem) for path in paths]
    return list(_bring(names, foreign, TrackedStore(session.place), str(folder)))


def push_results(
    wanted: Iterable[tuple[str, Key]], session: Session, artifacts: str, tracking_uri: str
) -> list[Imported]:
    """Bring these entries of the own ledger into the one at ``artifacts``, their runs and files into its MLflow.

    All they were made from comes along, and the names that users gave to teachers where the other ledger lacks them.
    """
    own = TrackedStore(session.place)
    place = Place(tracking_uri=tracking_uri, artifacts=artifacts, home=session.home)
    other = TrackedStore(place)
    if other.ledger.root == own.ledger.root:
        raise BadValue(f"{artifacts} is the ledger that the results are in.", "name another one")
    if tracking_uri == session.place.tracking_uri and not tracking_uri.startswith("http"):
        raise BadValue(
            "The other ledger needs a tracking server or a database of its own.", "name it: --tracking http://..."
        )
    check_place(place)
    brought = list(_bring(_with_parents(own, wanted), own, other, own.ledger.root))
    there = other.ledger.roles()
    for (dataset, role), recipe in own.ledger.roles().items():
        if (dataset, role) not in there:
            other.ledger.set_role(dataset, role, recipe)
    return brought


def _with_parents(store: TrackedStore, wanted: Iterable[tuple[str, Key]]) -> list[tuple[str, Key]]:
    """These entries after all that they were made from, as far as the ledger has it."""
    found: dict[tuple[str, Key], None] = {}

    def add(kind: str, key: Key) -> None:
        entry = store.find(kind, key)
        if (kind, key) not in found and entry is not None:
            for parent in from_json(canonical(entry.recipe)).parents():
                add(*parent)
            found[kind, key] = None

    for kind, key in wanted:
        add(kind, key)
    return list(found)


def _bring(names: Iterable[tuple[str, Key]], source: Store, target: TrackedStore, where: str) -> Iterator[Imported]:
    """Put entries of ``source`` (at ``where``, for messages), parents before children, into another ledger."""
    for kind, key in names:
        entry = source.find(kind, key)
        if entry is None:
            raise DataMissing(f"{where} has no {kind} {key[:12]}.", "make or import it first")
        recipe = from_json(canonical(entry.recipe))
        if (recipe.kind, recipe.key, entry.key) != (kind, key, key):
            raise DataCorrupt(
                f"Entry {kind} {key[:12]} at {where} holds the recipe {recipe.kind} {recipe.key[:12]}.",
                "remove that entry and make it again",
            )
        new = target.find(kind, key) is None
        if new:
            files = source.fetch(kind, key)
            target.put(entry, files, parent_facts(recipe, target.find))
        yield Imported(kind, key, recipe.label(), new)
