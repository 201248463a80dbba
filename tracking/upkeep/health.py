"""Checks of tracking server and object store, before a run starts and for ``rd3 doctor``."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from rd3.errors import RD3Error, StoreError, TrackingError
from tracking.ledger.addresses import is_local
from tracking.ledger.faults import without_password
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.artifacts import repository
from tracking.runs.client import FILES_OF_SERVER
from tracking.runs.runs import Tracker
from tracking.store import EXPERIMENT

CLOCK_ERROR_S = 30.0
"""Maximum clock difference in seconds, which the lease on a ledger tolerates."""
CLOCK_WARNING_S = 5.0
"""Clock difference in seconds above which ``rd3 doctor`` warns."""


def check_place(place: Place) -> None:
    """Raise an error unless tracking server and artifact root respond, accept the login and agree on the time."""
    Tracker(place).check()
    check_store(place.artifacts)


def check_store(root: str) -> None:
    """Raise :class:`StoreError` unless the bucket or folder is accessible and its clock agrees with this machine's."""
    objects = open_objects(root)
    ahead_s = objects.clock_ahead_s()
    if ahead_s is None:
        next(objects.names(), None)
    elif abs(ahead_s) > CLOCK_ERROR_S:
        raise StoreError(clocks_apart(ahead_s, objects.server()), "set the clock (NTP) on both")


def clocks_apart(ahead_s: float, other: str) -> str:
    """The message for a clock difference."""
    return (
        f"The clock of this machine is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {other}."
    )


def prepare_store(root: str) -> Iterator[str]:
    """Create what is missing for artifacts at ``root``, check it, and yield a line per step; idempotent.

    Raises :class:`StoreError` if a check fails.
    """
    objects = open_objects(root)
    yield from objects.prepare()
    probe_store(root)
    yield from objects.check_private()
    yield f"{objects.root}: write, read, conditional write, list and delete work"


def probe_store(root: str) -> None:
    """Write, read, conditionally overwrite, list and delete a small object; raises :class:`StoreError` on a failure."""
    objects, name = open_objects(root), f"probe-{uuid.uuid4().hex}"
    try:
        objects.put(name, b"one", only_if_absent=True)
        if objects.get(name) != b"one":
            raise StoreError(f"{root} returns other content than was written.", "check the log of that server")
        if objects.put(name, b"two", only_if_absent=True) or objects.get(name) != b"one":
            raise StoreError(
                f"{root} ignores the condition If-None-Match and overwrites an object.",
                "use a server with conditional writes: RD3's lease and ledger rely on them",
            )
        if list(objects.names(name)) != [name]:
            raise StoreError(f"{root} does not list an object that was written.", "check the log of that server")
    except BaseException:
        with contextlib.suppress(StoreError):  # the first error is the one to report
            objects.delete(name)
        raise
    objects.delete(name)
    if objects.get(name) is not None:
        raise StoreError(f"{root} still has an object that was deleted.", "allow RD3's key to delete objects")


def check_location(place: Place, location: str) -> None:
    """Raise :class:`TrackingError` if a tracking server keeps files in a folder, which is one of its own machine.

    Writing and reading there succeeds on every machine that can create the folder, but each then has its own files.
    """
    if place.tracking_uri.startswith("http") and (is_local(location) or ":" not in location):
        raise TrackingError(
            f"The tracking server {without_password(place.tracking_uri)} has the files of experiment {EXPERIMENT!r} at "
            f"{location}, a folder that other machines do not see.",
            FILES_OF_SERVER,
        )


def probe_artifacts(place: Place) -> None:
    """Write, read and delete a small file the way trials store theirs: through the tracking server, if there is one."""
    tracker = Tracker(place)
    tracker.check()
    experiment_id = tracker.experiment(EXPERIMENT)
    with tracker.errors(), tempfile.TemporaryDirectory() as folder:
        name = f"probe-{uuid.uuid4().hex}"
        sent = Path(folder) / name
        sent.write_text(name)
        location = tracker.client.get_experiment(experiment_id).artifact_location
        check_location(place, location)
        files = repository(location, place.tracking_uri)
        files.log_artifact(str(sent))
        try:
            Path(folder, "back").mkdir()
            files.download_artifacts(name, dst_path=str(Path(folder, "back")))
            if Path(folder, "back", name).read_text() != name:
                raise TrackingError(f"{location} returns other content than was written.", "check the server's log")
        finally:
            with contextlib.suppress(RD3Error), tracker.errors():  # a trial's key may not delete
                files.delete_artifacts(name)
