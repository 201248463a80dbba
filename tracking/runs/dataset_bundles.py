"""Datasets that travel: packed into tar files, kept by an MLflow run, found again by name and fingerprint.

Whoever may read the tracking server may pull them, so a trial needs no S3 credentials; where the files lie is the
server's business.  A run that is FINISHED holds a whole parcel, and nothing else is ever read.
"""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from rd3.errors import DataCorrupt, RD3Error
from rd3.store import sha256_file
from tracking.ledger.object_store import folder_errors
from tracking.runs.runs import Tracker

EXPERIMENT = "rd3 data"
PART_BYTES = 512 * 2**20
"""Files are packed together up to this size: many small ones are one transfer, and one part at a time needs disk."""
_MANIFEST = "parcel.json"

Progress = Callable[[float, str], None]


class DatasetBundle(BaseModel):
    """A dataset as it was pushed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    files: int
    bytes: int
    parts: dict[str, str]
    """Name of a tar file to its sha256."""
    registration: dict[str, Any] | None = None
    """For a dataset that a user registered: what has to be known of it besides its files."""
    run_id: str


def find(tracker: Tracker, name: str, fingerprint: str | None = None) -> DatasetBundle | None:
    """The parcel of a dataset, the latest where no fingerprint is asked for; None if nobody has pushed it."""
    wanted = {"rd3.kind": "data", "rd3.data": name} | ({"rd3.fingerprint": fingerprint} if fingerprint else {})
    with tracker.errors(), tempfile.TemporaryDirectory() as folder:
        experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
        ids = [experiment.experiment_id] if experiment is not None else []
        runs = tracker.search(ids, wanted, "attributes.status = 'FINISHED'") if ids else []
        if not runs:
            return None
        manifest = tracker.client.download_artifacts(runs[-1].info.run_id, _MANIFEST, folder)
        return DatasetBundle.model_validate_json(Path(manifest).read_bytes())


def put(
    tracker: Tracker,
    folder: Path,
    name: str,
    fingerprint: str,
    *,
    registration: dict[str, Any] | None = None,
    scratch: Path,
    progress: Progress,
) -> DatasetBundle:
    """Pack all files below ``folder`` and send them; ``scratch`` holds one part at a time."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    total = sum(path.stat().st_size for path in files)
    with tracker.errors():
        run_id = tracker.client.create_run(
            tracker.experiment(EXPERIMENT),
            run_name=f"data {name}",
            tags={"rd3.kind": "data", "rd3.data": name, "rd3.fingerprint": fingerprint},
        ).info.run_id
        try:
            parts: dict[str, str] = {}
            for part, fraction in _packed(files, folder, scratch, total):
                progress(fraction, part.name)
                parts[part.name] = sha256_file(part)
                tracker.client.log_artifact(run_id, str(part), "parts")
            parcel = DatasetBundle(
                name=name,
                fingerprint=fingerprint,
                files=len(files),
                bytes=total,
                parts=parts,
                registration=registration,
                run_id=run_id,
            )
            tracker.client.log_text(run_id, parcel.model_dump_json(indent=1), _MANIFEST)
            tracker.client.set_terminated(run_id, "FINISHED")
        except BaseException:
            with contextlib.suppress(RD3Error), tracker.errors():  # the first error is the one to tell
                tracker.client.set_terminated(run_id, "FAILED")
            raise
    return parcel


def _hidden(path: Path) -> bool:
    """What tools leave beside the data, such as a download's state."""
    return any(part.startswith(".") for part in path.parts)


def _packed(files: list[Path], root: Path, scratch: Path, total: int) -> Iterator[tuple[Path, float]]:
    """Tar files one after the other, each gone when the next is asked for, and the share of bytes packed before it."""
    scratch.mkdir(parents=True, exist_ok=True)
    packed = number = 0
    waiting = list(reversed(files))
    while waiting:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".pack-") as folder:
            part, before = Path(folder) / f"{number:05d}.tar", packed
            with folder_errors(scratch), tarfile.open(part, "w", dereference=True) as tar:
                while waiting and packed - before < PART_BYTES:
                    path = waiting.pop()
                    tar.add(path, path.relative_to(root).as_posix(), filter=_anonymous)
                    packed += path.stat().st_size
            yield part, before / max(1, total)
        number += 1


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whose files these were is nobody's business."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def unpack(tracker: Tracker, parcel: DatasetBundle, folder: Path, progress: Progress) -> None:
    """Fetch every part into ``folder``, which is empty, and check its hash before it is unpacked."""
    for number, (name, sha256) in enumerate(parcel.parts.items()):
        progress(number / len(parcel.parts), name)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
            with tracker.errors():
                part = Path(tracker.client.download_artifacts(parcel.run_id, f"parts/{name}", scratch))
            got = sha256_file(part)
            if got != sha256:
                raise DataCorrupt(
                    f"Dataset {parcel.name} as it was pushed is damaged: {name} has sha256 {got[:12]}, expected "
                    f"{sha256[:12]}.",
                    f"delete MLflow run {parcel.run_id} and push it again: rd3 data push {parcel.name}",
                )
            with folder_errors(folder), tarfile.open(part) as tar:
                tar.extractall(folder, filter="data")
