"""Results travel: as a folder for others and from others or ``rd3.run``, and from one ledger to another."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.settings import Session
from rd3 import parts
from rd3.errors import BadValue, DataCorrupt, DataMissing, NotCarried
from rd3.recipe import Key, Recipe, read_recipe, to_json
from rd3.store import FolderStore, ReadableStore, existing, write_atomically
from rd3.study import RESULTS, Study, Written, write_study
from tracking.ledger.ledger import recipe_of
from tracking.place import Place
from tracking.runs.fields import parent_facts
from tracking.store import TrackedStore
from tracking.upkeep.health import check_place


class Imported(NamedTuple):
    """One outcome: ``new`` is False where the ledger had it already, and for what is ``lacking`` (the reason)."""

    kind: str
    key: str
    label: str
    new: bool
    files: bool = True
    """False: the result is known, its files are not to be had; whatever needs them has it made again."""
    lacking: str = ""
    """Why it was not taken; empty where it was."""


def write_recipes(recipes: Sequence[Recipe], folder: Path) -> None:
    """A file of each for ``python -m rd3.run``, named so that they sort in this order."""
    for number, recipe in enumerate(recipes, 1):
        name = f"{number:0{len(str(len(recipes)))}}-{recipe.kind}-{recipe.key[:12]}.json"
        write_atomically(folder / name, to_json(recipe))


def export_results(recipes: Iterable[Recipe], folder: Path, session: Session, *, teachers: bool = False) -> int:
    """Put what is done of these recipes into a store folder that :func:`import_results` reads; how much is new there.

    Teachers are large and stay out unless wanted, as does what is known without its files; what is there already stays.
    """
    return _copy(_names(recipes), TrackedStore(session), folder, teachers=teachers)


def export_study(recipes: Iterable[Recipe], folder: Path, session: Session, *, teachers: bool = False) -> Written:
    """As :func:`export_results`, into a study; of teachers and statistics the entries, and the files if wanted."""
    return write_study(TrackedStore(session), _names(recipes), Path(folder).absolute(), networks=teachers)


def convert_to_store(source: Path, folder: Path, *, teachers: bool = False) -> int:
    """As :func:`export_results`, with all of another store folder or of a study."""
    with open_results(source) as found:
        return _copy(found.names(), found, folder, teachers=teachers)


def convert_to_study(source: Path, folder: Path, *, teachers: bool = False) -> Written:
    """As :func:`export_study`, with all of a store folder or of another study."""
    with open_results(source) as found:
        for kind, key in found.names():
            recipe_of(existing(found, kind, key), str(source))
        return write_study(found, found.names(), Path(folder).absolute(), networks=teachers)


def _names(recipes: Iterable[Recipe]) -> list[tuple[str, Key]]:
    return [(recipe.kind, recipe.key) for recipe in recipes]


def _copy(names: Iterable[tuple[str, Key]], source: ReadableStore, folder: Path, *, teachers: bool) -> int:
    target, new = FolderStore(Path(folder).absolute()), 0
    for kind, key in names:
        entry = source.find(kind, key) if teachers or kind != "teacher" else None
        if entry is None or target.find(kind, key) is not None:
            continue
        files = _files(source, kind, key)
        if files is not None:
            target.put(entry, files)
            new += 1
    return new


def holds_results(path: Path) -> bool:
    """Is this a store folder, a study's folder, or a Parquet file?"""
    return (path / "by-key").is_dir() or (path / RESULTS).is_file() or (path.suffix == ".parquet" and path.is_file())


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[FolderStore | Study]:
    """The results that somebody has sent, whichever way they are kept."""
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory() as scratch:
        is_study = holds_results(path) and not (path / "by-key").is_dir()
        found = Study(path, Path(scratch)) if is_study else FolderStore(path)
        if not found.names():
            raise DataMissing(
                f"{path} holds no results: there is neither {RESULTS} nor by-key/<kind>/<key>.json.",
                "give a folder of `rd3 export-results`, or the one that was --store of `python -m rd3.run`",
            )
        yield found


def import_results(path: Path, session: Session) -> list[Imported]:
    """Every entry of a store folder, a study folder or one of its Parquet files, parents first, files checked by hash.

    The folder may also hold the parts that a machine without network gave back (:mod:`rd3.parts`).  Doing it again
    changes nothing.
    """
    path = Path(path).absolute()
    if not parts.holds_parts(path):
        with open_results(path) as foreign:
            return _import(foreign, path, session)
    with tempfile.TemporaryDirectory(prefix="rd3-") as scratch:
        found = parts.unpack(path, Path(scratch))
        names = [(*name.split(" "), reason) for name, reason in found.lacking.items()]
        imported = _import(FolderStore(found.store), path, session) if found.entries else []
    return imported + [Imported(kind, key, "", False, lacking=reason) for kind, key, reason in names]


def _import(foreign: FolderStore | Study, path: Path, session: Session) -> list[Imported]:
    """``path`` is what the user named."""
    check_place(session)
    return list(_bring(foreign.names(), foreign, TrackedStore(session), str(path)))


def push_results(
    wanted: Iterable[tuple[str, Key]], session: Session, artifacts: str, tracking_uri: str
) -> list[Imported]:
    """Bring these entries of the own ledger into the one at ``artifacts``, their runs and files into its MLflow.

    All they were made from comes along, and the names that users gave to teachers where the other ledger lacks them.
    """
    own = TrackedStore(session)
    place = Place(tracking_uri=tracking_uri, artifacts=artifacts, home=session.home)
    other = TrackedStore(place)
    if other.ledger.root == own.ledger.root:
        raise BadValue(f"{artifacts} is the ledger that the results are in.", "name another one")
    if tracking_uri == session.tracking_uri and not tracking_uri.startswith("http"):
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
            for parent in read_recipe(entry.recipe).parents():
                add(*parent)
            found[kind, key] = None

    for kind, key in wanted:
        add(kind, key)
    return list(found)


def _bring(
    names: Iterable[tuple[str, Key]], source: ReadableStore, target: TrackedStore, where: str
) -> Iterator[Imported]:
    """Put entries of ``source`` (at ``where``, for messages), parents before children, into another ledger."""
    for kind, key in names:
        entry = source.find(kind, key)
        if entry is None:
            raise DataMissing(f"{where} has no {kind} {key[:12]}.", "make or import it first")
        if (entry.kind, entry.key) != (kind, key):
            raise DataCorrupt(
                f"Entry {kind} {key[:12]} at {where} says that it is {entry.kind} {entry.key[:12]}.",
                "remove that entry and make it again",
            )
        recipe = recipe_of(entry, where)
        known = target.find(kind, key)
        if known is None or not known.artifact:
            files = _files(source, kind, key)
            if files is not None:
                target.put(entry, files, parent_facts(recipe, target.find))
            elif known is None:
                target.mention(entry)
            yield Imported(kind, key, recipe.label(), known is None or files is not None, files is not None)
        else:
            yield Imported(kind, key, recipe.label(), False)


def _files(source: ReadableStore, kind: str, key: Key) -> Path | None:
    """The verified files of an entry; None where they were left out."""
    try:
        return source.fetch(kind, key)
    except NotCarried:
        return None
