"""Datasets on machines that lack them: pushed once from where they are, pulled by every node that needs them."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rd3.datasets import Roots, dataset_fingerprint, dataset_source, fingerprint_in, register, registration
from rd3.errors import BadValue, DataCorrupt, DataMissing, UnknownName
from rd3.recipe import Data
from tracking.ledger.object_store import folder_errors
from tracking.place import Place
from tracking.runs import dataset_bundles as parcels
from tracking.runs.client import without_password
from tracking.runs.dataset_bundles import DatasetBundle, Progress
from tracking.runs.runs import Tracker


class Pushed(NamedTuple):
    """``new`` is False where the tracking server had it already."""

    parcel: DatasetBundle
    new: bool


def _silent(_fraction: float, _note: str) -> None:
    """Nobody watches."""


def absent(name: str, roots: Roots) -> bool:
    """Whether this machine has no folder for a dataset, registered or not; what comes with a package never is."""
    try:
        places = dataset_source(name, roots).places(roots)
    except UnknownName:
        return True
    return bool(places) and not any(folder.is_dir() for folder in places)


def push(name: str, place: Place, progress: Progress = _silent) -> Pushed:
    """Send a dataset of this machine to the tracking server, once a fingerprint."""
    roots = place.roots
    folder = dataset_source(name, roots).survey(roots).folder
    if folder is None:
        raise BadValue(f"Dataset {name} comes with RD3's packages and has no files to push.", "every node has it")
    tracker = Tracker(place)
    tracker.check()
    fingerprint = dataset_fingerprint(name, roots)
    known = parcels.find(tracker, name, fingerprint)
    if known is not None:
        return Pushed(known, False)
    entry, scratch = registration(name, roots), place.home / "data"
    sent = parcels.put(tracker, folder, name, fingerprint, registration=entry, scratch=scratch, progress=progress)
    return Pushed(sent, True)


def pull(name: str, place: Place, fingerprint: str | None = None, progress: Progress = _silent) -> Path | None:
    """The dataset in RD3's home, fetched where this machine lacks it; None if it was here.

    One process of a node fetches, the others wait for it.  What is fetched is checked by hash and by fingerprint
    before it gets its name, so nobody sees a part of it.
    """
    roots = place.roots
    if not absent(name, roots):
        return None
    with _alone(roots.home / "data"):
        if not absent(name, roots):
            return None
        tracker = Tracker(place)
        parcel = parcels.find(tracker, name, fingerprint)
        if parcel is None:
            version = f" with fingerprint {fingerprint[:12]}" if fingerprint else ""
            raise DataMissing(
                f"Dataset {name} is not on {socket.gethostname()}, and nobody has pushed it{version} to "
                f"{without_password(place.tracking_uri)}.",
                f"on a machine that has it: rd3 data push {name}",
            )
        return _settle(tracker, parcel, roots, progress)


def _settle(tracker: Tracker, parcel: DatasetBundle, roots: Roots, progress: Progress) -> Path:
    base, entry = roots.home / "data", parcel.registration
    target = base / parcel.name
    with tempfile.TemporaryDirectory(dir=base, prefix=".pull-") as scratch:
        copy = Path(scratch) / parcel.name
        copy.mkdir()
        parcels.unpack(tracker, parcel, copy, progress)
        found = fingerprint_in(copy, roots, entry)
        if found != parcel.fingerprint:
            raise DataCorrupt(
                f"Dataset {parcel.name} was pushed with fingerprint {parcel.fingerprint[:12]} and arrives with "
                f"{found[:12]}.",
                f"push it with the version of RD3 that runs here: rd3 data push {parcel.name}",
            )
        with folder_errors(base):
            if target.exists():  # of a pull that was cut short, or of a registration that is gone
                target.rename(Path(scratch) / "before")
            copy.rename(target)
    if entry is not None:
        register(parcel.name, entry, target, roots)
    return target


def ensure_data(place: Place, data: Data, progress: Progress = _silent) -> None:
    """What a trial calls before it makes a recipe: its dataset is on this node, pulled if need be.

    Raises :class:`rd3.errors.Away` while the tracking server is away; asking again is harmless.
    """
    # A parcel has the fingerprint of the whole, a recipe of ``fit`` that of the training images: opening compares it.
    pull(data.name, place, None if data.split == "fit" else data.fingerprint, progress)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the lock goes with the process that holds it."""
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".pull.lock", "w")  # noqa: SIM115 - closed below
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
