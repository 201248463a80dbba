"""Garbage collection: files of dead or forgotten attempts, uploaded blocks of finished sets, scratch and caches.

A file is garbage if no ledger entry refers to it and it is older than an hour, so that work in progress is safe.  Runs,
scratch and caches belong to a driver and are only considered while none is alive.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rd3.errors import StoreError
from rd3.recipe import KINDS, Key
from rd3.store import Entry
from tracking.ledger.identity import identity
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import ObjectStore, Stored
from tracking.place import Place
from tracking.runs.artifacts import repository
from tracking.runs.runs import Tracker

YOUNG_S = 3600.0
"""Age in seconds below which nothing is garbage."""
UPLOAD_S = 86400.0
"""Age in seconds above which a multipart upload counts as abandoned."""
UNFINISHED_S = 7 * 86400.0
"""Age in seconds above which unfinished work counts as abandoned."""


@dataclass(frozen=True)
class Garbage:
    """An item that can be deleted by calling ``remove``."""

    what: str
    where: str
    size: int
    """Bytes."""
    remove: Callable[[], Any]


def find_garbage(place: Place, ledger: Ledger, *, driver_lives: bool) -> Iterator[Garbage]:
    """Yield everything that can be deleted; without runs, scratch and caches if ``driver_lives``."""
    now = time.time()
    keys = {kind: ledger.keys(kind) for kind in KINDS}
    objects, complete = ledger.objects, {f"blocks/{key}" for key in keys["set"]}
    yield from _objects("blocks of a set that is done", objects, "blocks/", 2, complete.__contains__, now)
    # Listings of objects do not show uploads in parts that were not completed, but these take up storage.
    for upload in objects.unfinished(before=now - UPLOAD_S):
        yield Garbage("unfinished upload", upload.url, upload.size, upload.abort)
    if driver_lives:
        return
    # Entries that an upgrade replaced still count: they and their files are removed on the user's request only.
    named = {kind: known | set(ledger.former_keys(kind)) for kind, known in keys.items()}
    entries = [entry for kind, known in named.items() for entry in ledger.find_many(kind, known).values()]
    used = {entry.artifact for entry in entries}
    yield from _objects(
        "files without ledger entry", objects, "files/", 3, lambda name: objects.url(name) not in used, now
    )
    # The path alone is not enough: on a shared server another machine's ledger may have the same one.
    # Of a copy, which has no identity yet, only runs without one may be taken for its own.
    ledger_id = place.ledger_id or identity(objects, create=False) or "none"
    yield from _runs(Tracker(replace(place, ledger_id=ledger_id)), ledger, entries, now)
    yield from _scratch(place.home, keys, now)


def _objects(
    what: str, objects: ObjectStore, folder: str, depth: int, unused: Callable[[str], bool], now: float
) -> Iterator[Garbage]:
    """Folders of objects, named by the first ``depth`` parts of their paths below the root, that are ``unused``."""
    groups: dict[str, list[Stored]] = defaultdict(list)
    for one in objects.entries(folder):
        groups["/".join(one.name.split("/")[:depth])].append(one)
    for name, found in groups.items():
        if unused(name) and all(now - one.changed > YOUNG_S for one in found):
            remove = partial(_delete, objects, found)
            yield Garbage(what, f"{objects.root}/{name}", sum(one.size for one in found), remove)


def _delete(objects: ObjectStore, found: list[Stored]) -> None:
    for one in found:
        objects.delete(one.name)


def _runs(tracker: Tracker, ledger: Ledger, entries: list[Entry], now: float) -> Iterator[Garbage]:
    """Files of ended runs of this ledger that no entry refers to."""
    named = {entry.run_id for entry in entries}
    ended = [
        run
        for run in tracker.own_runs()
        if run.data.tags.get("rd3.kind") in KINDS
        and run.info.run_id not in named
        and run.info.end_time is not None
        and now - run.info.end_time / 1000 > YOUNG_S
    ]
    if not entries and any(run.data.tags.get("rd3.status") == "done" for run in ended):
        raise StoreError(
            f"The ledger {ledger.root} is empty, but MLflow has finished runs of it.",
            "check RD3_ARTIFACTS, or rebuild the ledger: rd3 artifacts rebuild",
        )
    for run in ended:
        with tracker.errors():
            size = _size(repository(run.info.artifact_uri, tracker.place.tracking_uri), None)
        if size:
            remove = partial(_empty, tracker, run)
            yield Garbage("files of a run without ledger entry", run.info.artifact_uri, size, remove)


def _empty(tracker: Tracker, run: Any) -> None:
    """Delete the files of a run and change its status from ``done`` to ``removed``."""
    with tracker.errors():
        tracker.log(run.info.run_id, tags={"rd3.status": "removed", "rd3.reason": "no ledger entry named its files"})
        repository(run.info.artifact_uri, tracker.place.tracking_uri).delete_artifacts()


def _size(files: Any, path: str | None) -> int:
    return sum(_size(files, item.path) if item.is_dir else item.file_size or 0 for item in files.list_artifacts(path))


def _scratch(home: Path, keys: dict[str, set[Key]], now: float) -> Iterator[Garbage]:
    """Work folders of finished or abandoned recipes, the cache, which holds copies only, and cached teacher logits."""
    done = set().union(*keys.values())
    for folder in sorted((home / "work").glob("*/*")):
        age_s = YOUNG_S if folder.name.partition("-")[0] in done else UNFINISHED_S
        yield from _folder("work folder", folder, now, age_s)
    for folder in sorted((home / "cache").glob("*/*")):
        yield from _folder("cache", folder, now, YOUNG_S)
    if (logits := home / "logits").is_dir():
        yield from _folder("cached teacher logits", logits, now, YOUNG_S)


def _folder(what: str, folder: Path, now: float, age_s: float) -> Iterator[Garbage]:
    files = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    if all(now - stat.st_mtime > age_s for stat in (folder.stat(), *files)):
        remove = partial(shutil.rmtree, folder, ignore_errors=True)
        yield Garbage(what, str(folder), sum(stat.st_size for stat in files), remove)
