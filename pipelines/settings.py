"""Reads the environment: the locations of data, state and the tracking server."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rd3.errors import BadValue
from rd3.registry import did_you_mean
from tracking.place import Place

if TYPE_CHECKING:
    from tracking.ledger.ledger import Ledger

ADDRESSES = ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA", "RD3_HOME")
"""Variables that are sent to a cluster.  None is a secret: nodes have credentials in their own environment."""


@dataclass(frozen=True)
class Session(Place):
    """The addresses that a command works with, and the ledger and presets at them."""

    @property
    def presets(self) -> Path:
        """Folder of the user's own protocols, one YAML file each."""
        return self.home / "presets"

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The ledger at the artifact root, with one client for all that the session asks of it."""
        from tracking.ledger.ledger import Ledger

        return Ledger(self.artifacts)

    def owned(self, lease: str = "") -> Session:
        """The same addresses with the ledger's identity, which the holder of a ``lease`` creates if there is none."""
        from tracking.ledger.identity import identity

        return replace(self, ledger_id=identity(self.ledger.objects, create=bool(lease)), lease=lease)

    def __getstate__(self) -> dict[str, Any]:
        """Addresses alone travel to workers; a client stays in its process."""
        return {name: value for name, value in self.__dict__.items() if name != "ledger"}


def _without_secret(uri: str) -> str:
    """The address unchanged; raises BadValue for one with a password, as it is sent to trials, logs and tables."""
    if ":" not in urlsplit(uri).netloc.rpartition("@")[0]:
        return uri
    if uri.startswith("http"):
        fix = "remove it and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        fix = "remove it and set PGPASSWORD, or PGPASSFILE to a file that only you can read"
    raise BadValue("MLFLOW_TRACKING_URI contains a password, which others could read.", fix)


def session(env: Mapping[str, str] | None = None) -> Session:
    """From ``RD3_HOME`` (default ``.rd3``), ``RD3_DATA``, ``MLFLOW_TRACKING_URI`` and ``RD3_ARTIFACTS``."""
    env = os.environ if env is None else env
    home = Path(env.get("RD3_HOME") or ".rd3").expanduser().absolute()
    data = env.get("RD3_DATA")
    return Session(
        tracking_uri=_without_secret(env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"),
        artifacts=env.get("RD3_ARTIFACTS") or str(home / "artifacts"),
        home=home,
        data=Path(data).expanduser().absolute() if data else None,
    )


@contextmanager
def reading_session() -> Iterator[Session]:
    """The session of a read-only command: does not create RD3's home if it is missing."""
    here = session()
    if here.home.is_dir():
        yield here
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield replace(here, decoded=Path(scratch))


def addresses_set() -> dict[str, str]:
    """The addresses set by the user that a cluster may share: artifact root and tracking server."""
    return {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS") if os.environ.get(name)}


def addresses(words: list[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` words; raises BadValue for a name that is not in :data:`ADDRESSES`."""
    found: dict[str, str] = {}
    for word in words:
        name, _equals, value = word.partition("=")
        if name not in ADDRESSES or not value:
            raise BadValue(
                f"--env accepts {', '.join(ADDRESSES)} as NAME=VALUE, got {name!r}.",
                did_you_mean(name, ADDRESSES) if name not in ADDRESSES else f"write {name}=VALUE",
            )
        found[name] = value
    return found


def driver_secrets() -> dict[str, str]:
    """Variables in the file ``RD3_DRIVER_ENV``: credentials for a driver on a node whose trials have none."""
    named = os.environ.get("RD3_DRIVER_ENV")
    if not named:
        return {}
    path = Path(named).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise BadValue(f"Other users can read {path}, the file in RD3_DRIVER_ENV.", f"chmod 600 {path}")
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise BadValue(
            f"Cannot read {path}, the file in RD3_DRIVER_ENV: {error.strerror}.", "fix or unset the variable"
        ) from None
    return {name.strip(): value for name, _equals, value in (line.partition("=") for line in lines)}
