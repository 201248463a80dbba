"""Dataset bundles: tar files stored as artifacts of an MLflow run, found by dataset name and fingerprint.

Reading the tracking server is enough to download them, so a trial needs no S3 credentials.  Only FINISHED runs, which
hold complete bundles, are read.
"""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from rd3.errors import DataCorrupt, RD3Error
from rd3.store import sha256_file, visible_files
from rd3.values import first_mistake
from tracking.ledger.object_store import folder_errors
from tracking.runs.runs import Tracker

EXPERIMENT = "rd3 data"
PART_BYTES = 512 * 2**20
"""A part is closed once it has this many bytes: avoids many small transfers, and bounds the disk space needed."""
_MANIFEST = "parcel.json"

Progress = Callable[[float, str], None]


class DatasetBundle(BaseModel):
    """Manifest of a pushed dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    fingerprint: str
    files: int
    bytes: int
    parts: dict[Annotated[str, StringConstraints(pattern=r"^\d{5,}\.tar$")], str]
    """Map of tar file names to their sha256."""
    registration: dict[str, Any] | None = None
    """For a dataset registered by a user: its registration entry."""
    run_id: str


def find(tracker: Tracker, name: str, fingerprint: str | None = None) -> DatasetBundle | None:
    """The latest bundle of a dataset, with this fingerprint if one is given; None if there is none."""
    wanted = {"rd3.kind": "data", "rd3.data": name} | ({"rd3.fingerprint": fingerprint} if fingerprint else {})
    with tracker.errors(), tempfile.TemporaryDirectory() as folder:
        experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
        ids = [experiment.experiment_id] if experiment is not None else []
        runs = tracker.search(ids, wanted, "attributes.status = 'FINISHED'")
        if not runs:
            return None
        run_id = runs[-1].info.run_id
        manifest = Path(tracker.client.download_artifacts(run_id, _MANIFEST, folder)).read_bytes()
    try:
        bundle = DatasetBundle.model_validate_json(manifest)
    except ValidationError as error:
        raise damaged(name, run_id, f"{_MANIFEST}, {first_mistake(error)}") from None
    for field, expected in (("name", name), ("run_id", run_id)):
        if getattr(bundle, field) != expected:
            raise damaged(name, run_id, f"{_MANIFEST} has {field} {getattr(bundle, field)!r}, expected {expected!r}")
    return bundle


def damaged(name: str, run_id: str, what: str) -> DataCorrupt:
    """The error for a pushed dataset that is not as ``rd3 data push`` made it."""
    return DataCorrupt(
        f"The pushed dataset {name} is damaged: {what} (MLflow run {run_id}).",
        f"delete MLflow run {run_id} and push it again: rd3 data push {name}",
    )


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
    """Pack and upload all files below ``folder`` but hidden ones; ``scratch`` needs space for one part.

    ``progress`` is called with the fraction of bytes packed so far and the name of the part.
    """
    files = [folder / name for name in visible_files(folder)]
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
            bundle = DatasetBundle(
                name=name,
                fingerprint=fingerprint,
                files=len(files),
                bytes=total,
                parts=parts,
                registration=registration,
                run_id=run_id,
            )
            tracker.client.log_text(run_id, bundle.model_dump_json(indent=1), _MANIFEST)
            tracker.client.set_terminated(run_id, "FINISHED")
        except BaseException:
            with contextlib.suppress(RD3Error), tracker.errors():  # the first error is the one to report
                tracker.client.set_terminated(run_id, "FAILED")
            raise
    return bundle


def _packed(files: list[Path], root: Path, scratch: Path, total: int) -> Iterator[tuple[Path, float]]:
    """Yield (tar file, fraction of bytes packed before it); each tar file is deleted when the next is requested."""
    scratch.mkdir(parents=True, exist_ok=True)
    packed = number = 0
    waiting = list(reversed(files))
    while waiting:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".pack-") as folder:
            part, before = Path(folder) / f"{number:05d}.tar", packed
            with folder_errors(scratch, "RD3_HOME"), tarfile.open(part, "w", dereference=True) as tar:
                while waiting and packed - before < PART_BYTES:
                    path = waiting.pop()
                    tar.add(path, path.relative_to(root).as_posix(), filter=_anonymous)
                    packed += path.stat().st_size
            yield part, before / max(1, total)
        number += 1


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the owner's user and group from a tar member."""
    return member.replace(uid=0, gid=0, uname="", gname="", deep=False)  # a deep copy includes the open archive


def unpack(tracker: Tracker, bundle: DatasetBundle, folder: Path, progress: Progress) -> None:
    """Download every part, verify its sha256 and unpack it into the empty ``folder``.

    Raises :class:`DataCorrupt` if a part has another sha256 than the manifest, or holds anything but files of the
    dataset.
    """
    for number, (name, sha256) in enumerate(bundle.parts.items()):
        progress(number / len(bundle.parts), name)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
            part = _part(tracker, bundle, name, sha256, scratch)
            with folder_errors(folder, "RD3_HOME"):
                _extract(part, folder, bundle)
    count = sum(path.is_file() for path in folder.rglob("*"))
    if count != bundle.files:
        raise damaged(bundle.name, bundle.run_id, f"it holds {count} files, its {_MANIFEST} counts {bundle.files}")


def _extract(part: Path, folder: Path, bundle: DatasetBundle) -> None:
    try:
        with tarfile.open(part, "r:") as tar:
            tar.extractall(folder, filter=_plain_file)
    except tarfile.FilterError as error:
        what = f"{part.name} holds {error.tarinfo.name!r}, which is not a file below the dataset's folder"
        raise damaged(bundle.name, bundle.run_id, what) from None
    except (tarfile.TarError, EOFError, ValueError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise damaged(bundle.name, bundle.run_id, f"{part.name} cannot be unpacked ({reason})") from None


def _plain_file(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """As the filter ``data`` of tarfile, which refuses what leaves the folder; links and absolute paths are, too."""
    if not (member.isreg() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    if PurePath(member.name).is_absolute():
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, folder)


def _part(tracker: Tracker, bundle: DatasetBundle, name: str, sha256: str, scratch: str) -> Path:
    """A verified part, downloaded to ``scratch``; a damaged download is tried again once."""
    for _attempt in range(2):
        with tracker.errors():
            part = Path(tracker.client.download_artifacts(bundle.run_id, f"parts/{name}", scratch))
        got = sha256_file(part)
        if got == sha256:
            return part
    raise damaged(bundle.name, bundle.run_id, f"{name} has sha256 {got[:12]}, expected {sha256[:12]}")
