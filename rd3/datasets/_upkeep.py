"""Check and download datasets, for ``rd3 data``."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import urllib.request
from dataclasses import dataclass
from typing import Literal

from rd3.datasets._base import Roots
from rd3.datasets._registry import dataset_names, dataset_source
from rd3.datasets._source import Copy
from rd3.errors import DataMissing, RD3Error, StoreError, Unsupported, is_disk_full
from rd3.store import write_errors


@dataclass(frozen=True)
class Finding:
    """The state of one dataset on this machine."""

    dataset: str
    state: Literal["ok", "missing", "wrong"]
    looked: tuple[str, ...]
    """Folders searched."""
    folder: str = ""
    """Folder in which it was found."""
    layout: str = ""
    source: str = ""
    train_count: int = 0
    test_count: int = 0
    train_per_class: int = 0
    message: str = ""
    """The problem, if there is one."""
    fix: str = ""


def doctor(roots: Roots, names: list[str] | None = None) -> list[Finding]:
    """Check all (or some) datasets: files, columns, labels, class lists and counts; images are not decoded."""
    findings = []
    for name in names if names is not None else dataset_names(roots):
        source = dataset_source(name, roots)
        looked = tuple(map(str, source.places(roots)))
        try:
            copy = source.survey(roots)
        except RD3Error as error:
            # DataMissing is also raised for a missing split or shard of a dataset that is present, which is a problem.
            absent = isinstance(error, DataMissing) and not any(map(os.path.isdir, looked))
            findings.append(
                Finding(name, "missing" if absent else "wrong", looked, message=error.message, fix=error.fix)
            )
        else:
            counts = (copy.info.train_count, copy.info.test_count, copy.info.train_per_class)
            place = (str(copy.folder or ""), copy.layout, copy.info.source)
            findings.append(Finding(name, "ok", looked, *place, *counts))
    return findings


def _network_fix(error: str) -> str:
    """What to check of the network; the proxy of this machine, if there is one."""
    proxy = urllib.request.getproxies().get("https", "")
    if not proxy:
        return "check the network"
    shown = proxy.rpartition("@")[2]
    if "407" in error:
        return f"put the user and password of the proxy {shown} into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT)"
    return f"check the network and the proxy {shown}: correct or unset HTTPS_PROXY"


def fetch(name: str, roots: Roots) -> Copy:
    """Download a dataset into ``<home>/data/<name>`` unless it is there already; needs a network connection."""
    source = dataset_source(name, roots)
    with contextlib.suppress(DataMissing):
        return source.survey(roots)
    if not source.fetches:
        raise Unsupported(f"RD3 cannot download dataset {name}.", source.how_to_get(roots))
    base = roots.home / "data"
    target = base / name
    if target.exists():
        raise StoreError(f"{target} exists, but does not hold {name}.", "remove or rename it, then fetch again")
    staging = base / f".{name}-{secrets.token_hex(4)}"
    with write_errors(base, "choose another home folder"):
        staging.mkdir(parents=True)  # not tempfile's, which only its owner could read
    try:
        source.fetch(staging)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            message = f"Download of dataset {name} failed: no space left in {base}."
            raise StoreError(message, "free space there or choose another home folder") from error
        raise DataMissing(
            f"Download of dataset {name} failed ({type(error).__name__}: {error}).",
            f"{_network_fix(str(error))}, or obtain {name} manually: {source.obtain.format(folder=target)}",
        ) from error
    else:
        with write_errors(base, "choose another home folder"):
            try:
                os.rename(staging, target)
            except OSError:
                if not target.is_dir():  # otherwise another process has put its own download there
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return source.survey(roots)
