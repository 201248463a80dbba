"""Result transfer: export to and import from folders (also of ``rd3.run``), and push to another ledger."""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.settings import Session, artifact_root, tracking_address
from rd3 import parts
from rd3.errors import BadValue, DataCorrupt, DataMissing, FilesNotExported, TrackingError
from rd3.kept_students import OtherResult, add_student, differing_figure, without_student
from rd3.one_level import one_level_down
from rd3.recipe import KINDS, Key, Recipe, RobustnessRecipe, read_recipe, to_json
from rd3.store import STUDENT, Entry, FolderStore, ReadableStore, existing, write_atomically
from rd3.study import RESULTS, Study, Written, write_study
from tracking.ledger.ledger import recipe_of
from tracking.place import Place
from tracking.runs.fields import parent_facts
from tracking.store import TrackedStore
from tracking.upkeep.health import check_place


class Imported(NamedTuple):
    """An entry of an import; ``new``: the ledger has gained it, its files, or the student of an evaluation."""

    kind: str
    key: str
    label: str
    new: bool
    files: bool = True
    """False: the result is known but its files are not available; a run that needs them regenerates them."""
    lacking: str = ""
    """Why it was not imported; empty if it was."""


_RECIPE_FILE = re.compile(rf"\d+-(?:{'|'.join(KINDS)})-[0-9a-f]{{12}}\.json")
"""Name of a file of :func:`write_recipes`."""


def replace_recipes(recipes: Sequence[Recipe], folder: Path) -> None:
    """:func:`write_recipes`, without those that an earlier call has left in the folder."""
    for path in folder.glob("*.json"):
        if _RECIPE_FILE.fullmatch(path.name):
            path.unlink()
    write_recipes(recipes, folder)


def write_recipes(recipes: Sequence[Recipe], folder: Path) -> None:
    """Write a file per recipe for ``python -m rd3.run``, named so that they sort in this order."""
    for number, recipe in enumerate(recipes, 1):
        name = f"{number:0{len(str(len(recipes)))}}-{recipe.kind}-{recipe.key[:12]}.json"
        write_atomically(folder / name, to_json(recipe))


def export_results(recipes: Iterable[Recipe], folder: Path, session: Session, *, teachers: bool = False) -> int:
    """Export the finished results of these recipes to a store folder for :func:`import_results`; returns the new ones.

    Networks are large and are included only with ``teachers``: teachers, backbones, and the students of evaluations.
    Results without files are skipped, existing ones are kept; an evaluation may gain its student.
    """
    return _copy(_names(recipes), TrackedStore(session), folder, teachers=teachers)


def export_study(recipes: Iterable[Recipe], folder: Path, session: Session, *, teachers: bool = False) -> Written:
    """As :func:`export_results`, to a study; teachers and statistics without their files unless ``teachers``."""
    return write_study(TrackedStore(session), _names(recipes), Path(folder).absolute(), networks=teachers)


def convert_to_store(source: Path, folder: Path, *, teachers: bool = False) -> int:
    """As :func:`export_results`, with all entries of another store folder or of a study."""
    with open_results(source) as found:
        return _copy(found.names(), found, folder, teachers=teachers)


def convert_to_study(source: Path, folder: Path, *, teachers: bool = False) -> Written:
    """As :func:`export_study`, with all entries of a store folder or of another study."""
    with open_results(source) as found:
        for kind, key in found.names():
            recipe_of(existing(found, kind, key), str(source))  # refuses an older format, or a recipe of another key
        return write_study(found, found.names(), Path(folder).absolute(), networks=teachers)


def _names(recipes: Iterable[Recipe]) -> list[tuple[str, Key]]:
    return [(recipe.kind, recipe.key) for recipe in recipes]


def _copy(names: Iterable[tuple[str, Key]], source: ReadableStore, folder: Path, *, teachers: bool) -> int:
    target, new = FolderStore(Path(folder).absolute()), 0
    for kind, key in names:
        entry = source.find(kind, key) if teachers or KINDS[kind].holds != "network" else None
        if entry is not None and not teachers:
            entry = without_student(entry)
        known = target.find(kind, key)
        if entry is None or (known is not None and (STUDENT in known.files or STUDENT not in entry.files)):
            continue
        files = _files(source, kind, key)
        if files is not None and known is not None:
            add_student(target, entry, files)
        elif files is not None:
            target.put(entry, files)
            new += 1
    return new


def holds_results(path: Path) -> bool:
    """Whether a path is a store folder, a study folder or a Parquet file."""
    with contextlib.suppress(OSError):  # not a path, such as too long a text
        is_store, is_parquet = (path / "by-key").is_dir(), path.suffix == ".parquet" and path.is_file()
        return is_store or is_parquet or (path / RESULTS).is_file()
    return False


@contextlib.contextmanager
def open_results(path: Path) -> Iterator[FolderStore | Study]:
    """Open the results at a path, in any of the formats."""
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory() as scratch:
        is_study = holds_results(path) and not (path / "by-key").is_dir()
        found = Study(path, Path(scratch)) if is_study else FolderStore(path)
        if not found.names():
            if deeper := one_level_down(path, lambda one: holds_results(one) or parts.holds_parts(one)):
                message = f"{path} contains no results, but {deeper[0]} does."
                raise DataMissing(message, f"give {shlex.quote(str(deeper[0]))}")
            raise DataMissing(
                f"{path} contains no results: neither {RESULTS} nor by-key/<kind>/<key>.json.",
                "give a folder written by `rd3 export-results`, or the --store folder of `python -m rd3.run`",
            )
        yield found


def import_results(path: Path, session: Session) -> list[Imported]:
    """Import every entry of a store folder, a study folder or a study's Parquet file, parents first, files verified.

    The folder may also contain the parts written by an offline machine (:mod:`rd3.parts`).  Idempotent.
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
    """``path``: as given by the user, for messages."""
    check_place(session)
    work = f"import-results {path.name}"
    return list(_bring(foreign.names(), foreign, TrackedStore(session.with_identity(work=work)), str(path)))


def push_results(
    wanted: Iterable[tuple[str, Key]], session: Session, artifacts: str, tracking_uri: str
) -> list[Imported]:
    """Copy these entries to the ledger at ``artifacts``, their runs and files to its MLflow.

    Their parents are copied as well, and teacher roles that the other ledger does not have.
    """
    own = TrackedStore(session)
    artifacts, tracking_uri = artifact_root(artifacts, "TARGET"), tracking_address(tracking_uri, "--tracking")
    place = Place(tracking_uri=tracking_uri, artifacts=artifacts, home=session.home)
    other = TrackedStore(place)
    if other.ledger.root == own.ledger.root:
        raise BadValue(f"{artifacts} is the ledger that already contains the results.", "give another one")
    if tracking_uri == session.tracking_uri and not tracking_uri.startswith("http"):
        raise BadValue("The other ledger needs its own tracking server or database.", "give it: --tracking http://...")
    try:
        check_place(place)
    except TrackingError as error:  # its fix is for the variable
        raise type(error)(error.message, error.fix.replace("MLFLOW_TRACKING_URI", "--tracking")) from None
    copied = list(_bring(_with_parents(own, wanted), own, other, own.ledger.root))
    there = other.ledger.roles()
    for (dataset, role), recipe in own.ledger.roles().items():
        if (dataset, role) not in there:
            other.ledger.set_role(dataset, role, recipe)
    return copied


def _with_parents(store: TrackedStore, wanted: Iterable[tuple[str, Key]]) -> list[tuple[str, Key]]:
    """These entries, preceded by their parents as far as the ledger has them."""
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
            raise DataMissing(f"{where} has no {kind} {key[:12]}.", "run or import it first")
        if (entry.kind, entry.key) != (kind, key):
            raise DataCorrupt(
                f"Entry {kind} {key[:12]} at {where} contains {entry.kind} {entry.key[:12]}.",
                "remove that entry and run it again",
            )
        recipe = recipe_of(entry, where)
        known = target.find(kind, key)
        if known is not None and known.artifact:
            yield _known(entry, known, recipe, source, target)
            continue
        other = _other_student(entry, recipe, source, target)
        if other:
            yield Imported(kind, key, "", False, lacking=other)
            continue
        files = _files(source, kind, key)
        if files is not None:
            target.put(entry, files, parent_facts(recipe, target.find), source=where)
        elif known is None:
            target.add_without_files(entry)  # the result alone, without files
        yield Imported(kind, key, recipe.label(), known is None or files is not None, files is not None)


def _known(entry: Entry, known: Entry, recipe: Recipe, source: ReadableStore, target: TrackedStore) -> Imported:
    """An entry that the ledger has: only a student is added to it, if the ledger's lacks that."""
    named = Imported(entry.kind, entry.key, recipe.label(), False)
    files = _files(source, entry.kind, entry.key) if STUDENT in entry.files and STUDENT not in known.files else None
    if files is None:
        return named
    try:
        target.add_student(entry, files)
    except (OtherResult, DataMissing, DataCorrupt) as error:
        return named._replace(label="", lacking=f"its student: {error.message}")
    return named._replace(new=True)


def _other_student(entry: Entry, recipe: Recipe, source: ReadableStore, target: TrackedStore) -> str:
    """Why a measurement of robustness does not belong to the ledger's evaluation; empty for all other entries.

    The results of both evaluations are compared, because another device may round a few predictions of a measurement
    differently; the measurement itself is compared if the source has no evaluation.
    """
    if not isinstance(recipe, RobustnessRecipe):
        return ""
    recorded, theirs = (store.find("evaluation", recipe.evaluation) for store in (target, source))
    if recorded is None:
        return ""
    measured, result = (theirs or entry).result, dict(recorded.result)
    if theirs is None:
        result = {name: result.get(name) for name in ("tested", "correct")}
    difference = differing_figure(result, measured)
    return f"its student is not that of the evaluation in the ledger: {difference}" if difference else ""


def _files(source: ReadableStore, kind: str, key: Key) -> Path | None:
    """The verified files of an entry; None if they are not available."""
    with contextlib.suppress(FilesNotExported):
        return source.fetch(kind, key)
    return None
