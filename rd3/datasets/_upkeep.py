"""What is there, what is wrong, and how to mend it; for ``rd3 data``."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rd3.datasets._base import Roots
from rd3.datasets._registry import dataset_names, dataset_source
from rd3.datasets._source import Copy
from rd3.errors import DataMissing, RD3Error, StoreError, Unsupported


@dataclass(frozen=True)
class Finding:
    """The state of one dataset on this machine."""

    dataset: str
    state: Literal["ok", "missing", "wrong"]
    looked: tuple[str, ...]
    """Folders that are looked in."""
    folder: str = ""
    """Where it was found."""
    layout: str = ""
    source: str = ""
    train_count: int = 0
    test_count: int = 0
    train_per_class: int = 0
    message: str = ""
    """What is wrong."""
    fix: str = ""


def doctor(roots: Roots, names: list[str] | None = None) -> list[Finding]:
    """Look at all datasets (or some): files, columns, labels, class lists and counts; images are not decoded."""
    findings = []
    for name in names if names is not None else dataset_names(roots):
        source = dataset_source(name, roots)
        looked = tuple(map(str, source.places(roots)))
        try:
            findings.append(_ok(name, looked, source.survey(roots)))
        except RD3Error as error:
            # DataMissing also tells of a split or a shard that is missing from a folder: that is wrong, not absent.
            absent = isinstance(error, DataMissing) and not any(map(os.path.isdir, looked))
            findings.append(
                Finding(name, "missing" if absent else "wrong", looked, message=error.message, fix=error.fix)
            )
    return findings


def _ok(name: str, looked: tuple[str, ...], copy: Copy) -> Finding:
    info = copy.info
    counts = (info.train_count, info.test_count, info.train_per_class)
    return Finding(name, "ok", looked, str(copy.folder or ""), copy.layout, info.source, *counts)


def fetch(name: str, roots: Roots) -> Copy:
    """Download a dataset into ``<home>/data/<name>`` unless it is there already; needs a network."""
    source = dataset_source(name, roots)
    with contextlib.suppress(DataMissing):
        return source.survey(roots)
    if not source.fetches:
        raise Unsupported(f"Dataset {name} cannot be downloaded by RD3.", source.how_to_get(roots))
    base = roots.home / "data"
    target = base / name
    if target.exists():
        raise StoreError(f"{target} is in the way: it does not hold {name}.", "remove or rename it, then fetch again")
    try:
        base.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=base))
    except OSError as error:
        raise StoreError(f"{base} cannot be written ({error.strerror}).", "choose another home folder") from error
    try:
        source.fetch(staging)
        staging.chmod(0o755)
        os.rename(staging, target)
    except (OSError, RuntimeError) as error:
        raise DataMissing(
            f"Dataset {name} cannot be downloaded ({type(error).__name__}: {error}).",
            f"check the network, or copy {name} by hand: {source.obtain.format(folder=target)}",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return source.survey(roots)
