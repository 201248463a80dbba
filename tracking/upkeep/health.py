"""Does the memory answer, and do what RD3 asks of it?  For runs before they start, and for ``rd3 doctor``."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from rd3.errors import RD3Error, StoreError, TrackingError
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.client import quiet_mlflow
from tracking.runs.runs import Tracker
from tracking.store import HAND

CLOCKS_S = 30.0
"""How far clocks may be apart: the lease on a ledger tolerates half a minute."""
NOTICED_S = 5.0
"""How far apart they are when it is worth a word."""


def check_place(place: Place) -> None:
    """Raise one sentence unless tracking server and artifact root are there, let us in, and have our time."""
    Tracker(place).check()
    check_store(place.artifacts)


def check_store(root: str) -> None:
    """Raise :class:`StoreError` unless bucket or folder answers to our credentials, and its clock is ours."""
    objects = open_objects(root)
    ahead_s = objects.clock_ahead_s()
    if ahead_s is None:
        next(objects.names(), None)
    elif abs(ahead_s) > CLOCKS_S:
        raise StoreError(clocks_apart(ahead_s, objects.server()), "set the clock (NTP) on both")


def clocks_apart(ahead_s: float, other: str) -> str:
    """The sentence for it."""
    return (
        f"The clock of this machine is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {other}."
    )


def prepare_store(root: str) -> Iterator[str]:
    """Make what is missing for artifacts at ``root``, check it, and say line by line what was done.

    Does no harm where all is there.  Raises :class:`StoreError` where RD3 could not work.
    """
    objects = open_objects(root)
    yield from objects.prepare()
    probe_store(root)
    yield from objects.check_private()
    yield f"{objects.root}: write, read, conditional write, list and delete work"


def probe_store(root: str) -> None:
    """Write, read, refuse to overwrite, list and delete one small document; raises unless each does as it should."""
    objects, name = open_objects(root), f"probe-{uuid.uuid4().hex}"
    try:
        objects.put(name, b"one", only_if_absent=True)
        if objects.get(name) != b"one":
            raise StoreError(f"{root} does not give back what was written.", "look into the log of that server")
        if objects.put(name, b"two", only_if_absent=True) or objects.get(name) != b"one":
            raise StoreError(
                f"{root} overwrites a document that was to be written only if absent (If-None-Match).",
                "use a server that knows conditional writes: RD3's lease and ledger rely on them",
            )
        if list(objects.names(name)) != [name]:
            raise StoreError(f"{root} does not list what was written.", "look into the log of that server")
    finally:
        objects.delete(name)
    if objects.get(name) is not None:
        raise StoreError(f"{root} keeps what was deleted.", "let RD3's key delete objects")


def probe_artifacts(place: Place) -> None:
    """Write, read and delete a small file the way trials keep theirs: through the tracking server, if it has one."""
    tracker = Tracker(place)
    tracker.check()
    experiment_id = tracker.experiment(HAND)
    quiet_mlflow()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tracker.errors(), tempfile.TemporaryDirectory() as folder:
        name = f"probe-{uuid.uuid4().hex}"
        sent = Path(folder) / name
        sent.write_text(name)
        location = tracker.client.get_experiment(experiment_id).artifact_location
        repository = get_artifact_repository(location, tracking_uri=place.tracking_uri)
        repository.log_artifact(str(sent))
        try:
            Path(folder, "back").mkdir()
            repository.download_artifacts(name, dst_path=str(Path(folder, "back")))
            if Path(folder, "back", name).read_text() != name:
                raise TrackingError(f"{location} does not give back what was written.", "look into the server's log")
        finally:
            with contextlib.suppress(RD3Error):
                repository.delete_artifacts(name)
