"""Dataset transfer through the tracking server: pushed once, pulled by every node that needs them."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from rd3.datasets import Roots, dataset_fingerprint, dataset_source, fingerprint_in, register, registration
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing, UnknownName
from rd3.locks import exclusive
from rd3.recipe import Data
from tracking.ledger.faults import without_password
from tracking.ledger.object_store import folder_errors
from tracking.place import Place
from tracking.runs import dataset_bundles as bundles
from tracking.runs.dataset_bundles import DatasetBundle, Progress
from tracking.runs.runs import Tracker


def absent(name: str, roots: Roots) -> bool:
    """Whether this machine has no folder for a dataset; False for datasets bundled with a package."""
    try:
        places = dataset_source(name, roots).places(roots)
    except UnknownName:
        return True
    return bool(places) and not any(folder.is_dir() for folder in places)


def push(name: str, place: Place, progress: Progress = lambda fraction, note: None) -> tuple[DatasetBundle, bool]:
    """Upload a dataset; returns it and True, or what the tracking server has with this fingerprint and False."""
    roots = place.roots
    folder = dataset_source(name, roots).survey(roots).folder
    if folder is None:
        raise BadValue(
            f"Dataset {name} is bundled with RD3's packages and has no files to push.", "every node already has it"
        )
    tracker = Tracker(place)
    tracker.check()
    fingerprint = dataset_fingerprint(name, roots)
    known = bundles.find(tracker, name, fingerprint)
    if known is not None:
        return known, False
    entry, scratch = registration(name, roots), place.home / "data"
    sent = bundles.put(tracker, folder, name, fingerprint, registration=entry, scratch=scratch, progress=progress)
    return sent, True


def pushed_bundle(name: str, place: Place, where: str, fingerprint: str | None = None) -> DatasetBundle:
    """The bundle of a dataset that machine ``where`` lacks; raises :class:`DataMissing` if it has not been pushed."""
    bundle = bundles.find(Tracker(place), name, fingerprint)
    if bundle is None:
        version = f" with fingerprint {fingerprint[:12]}" if fingerprint else ""
        raise DataMissing(
            f"Dataset {name} is not on {where}, and has not been pushed{version} to "
            f"{without_password(place.tracking_uri)}.",
            f"on a machine that has it, run rd3 data push {name}",
        )
    return bundle


def pull(
    name: str, place: Place, fingerprint: str | None = None, progress: Progress = lambda fraction, note: None
) -> Path | None:
    """Download a dataset into RD3's home if this machine does not have it; returns its folder, or None if it was here.

    One process per node downloads, the others wait for it.  The files are verified by hash and fingerprint before the
    folder gets its final name, so incomplete copies are never visible.
    """
    roots = place.roots
    if not absent(name, roots):
        return None
    with folder_errors(roots.home / "data"):
        (roots.home / "data").mkdir(parents=True, exist_ok=True)
    with exclusive(roots.home / "data" / ".pull.lock"):
        if not absent(name, roots):
            return None
        bundle = pushed_bundle(name, place, socket.gethostname(), fingerprint)
        return _install(Tracker(place), bundle, roots, progress)


def _install(tracker: Tracker, bundle: DatasetBundle, roots: Roots, progress: Progress) -> Path:
    """Unpack a bundle beside its final folder, verify it, rename it and register the dataset; returns the folder."""
    base, entry = roots.home / "data", bundle.registration
    target = base / bundle.name
    with tempfile.TemporaryDirectory(dir=base, prefix=".pull-") as scratch:
        copy = Path(scratch) / bundle.name
        copy.mkdir()
        bundles.unpack(tracker, bundle, copy, progress)
        found = _fingerprint(copy, roots, bundle)
        if found != bundle.fingerprint:
            raise DataCorrupt(
                f"Dataset {bundle.name} was pushed with fingerprint {bundle.fingerprint[:12]}, got {found[:12]} "
                f"(MLflow run {bundle.run_id}).",
                f"push it again with the version of RD3 that runs here: rd3 data push {bundle.name}",
            )
        with folder_errors(base, "RD3_HOME"):
            if target.exists():  # from an interrupted pull or a removed registration
                target.rename(Path(scratch) / "before")
            copy.rename(target)
    if entry is not None:
        register(bundle.name, entry, target, roots)
    return target


def _fingerprint(copy: Path, roots: Roots, bundle: DatasetBundle) -> str:
    """The fingerprint of an unpacked bundle; what is wrong with it is said of the bundle, as the copy is deleted."""
    try:
        return fingerprint_in(copy, roots, bundle.registration)
    except (BadValue, ClassOrderError, DataCorrupt, DataMissing) as error:
        what = error.message.rstrip(".").replace(f"{copy}/", "").replace(str(copy), "it")
        raise bundles.damaged(bundle.name, bundle.run_id, what) from None


def ensure_data(place: Place, data: Data, progress: Progress = lambda fraction, note: None) -> None:
    """Make sure that the dataset of a recipe is on this node, before a trial runs it; pull it if necessary.

    Raises :class:`rd3.errors.Unavailable` while the tracking server is unreachable; safe to retry.
    """
    # A bundle has the fingerprint of the full dataset, a recipe of ``fit`` that of its training images.
    pull(data.name, place, None if data.split == "fit" else data.fingerprint, progress)
