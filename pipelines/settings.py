"""The one place that reads the environment: where data, state and the tracking server are."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rd3.errors import BadValue
from rd3.registry import did_you_mean
from tracking.place import Place

if TYPE_CHECKING:
    from tracking.ledger.ledger import Ledger

ADDRESSES = ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA", "RD3_HOME")
"""The variables that travel.  None of them is a secret: credentials are in the environment of the nodes."""


@dataclass(frozen=True)
class Session(Place):
    """What every command works with: the addresses, and what is found there."""

    @property
    def presets(self) -> Path:
        """The user's own protocols, one YAML file each."""
        return self.home / "presets"

    @property
    def ledger(self) -> Ledger:
        """The ledger at the artifact root."""
        return _ledger(self.artifacts)


@functools.cache
def _ledger(artifacts: str) -> Ledger:
    from tracking.ledger.ledger import Ledger

    return Ledger(artifacts)


def _without_secret(uri: str) -> str:
    """The address as it is: it travels to every trial, into logs and tables, so no password may be in it."""
    if ":" not in urlsplit(uri).netloc.rpartition("@")[0]:
        return uri
    if uri.startswith("http"):
        fix = "take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        fix = "take it out and set PGPASSWORD, or PGPASSFILE to a file that only you can read"
    raise BadValue("MLFLOW_TRACKING_URI holds a password, which others would see.", fix)


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
    """The session of a command that only looks: where RD3's home does not exist, none is made for decoded data."""
    here = session()
    if here.home.is_dir():
        yield here
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield replace(here, decoded=Path(scratch))


def addresses_set() -> dict[str, str]:
    """The addresses that the user has set and that a cluster may share: of the ledger and of the tracking server."""
    return {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS") if os.environ.get(name)}


def addresses(words: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as variables; only addresses are taken."""
    found: dict[str, str] = {}
    for word in words:
        name, _equals, value = word.partition("=")
        if name not in ADDRESSES or not value:
            raise BadValue(
                f"--env takes {', '.join(ADDRESSES)} as NAME=VALUE, got {name!r}.",
                did_you_mean(name, ADDRESSES) if name not in ADDRESSES else f"write {name}=VALUE",
            )
        found[name] = value
    return found


def driver_secrets() -> dict[str, str]:
    """Variables in the file that ``RD3_DRIVER_ENV`` names: credentials of a driver on a node whose trials have none."""
    named = os.environ.get("RD3_DRIVER_ENV")
    if not named:
        return {}
    path = Path(named).expanduser()
    try:
        if path.stat().st_mode & 0o077:
            raise BadValue(f"Others may read {path}, which RD3_DRIVER_ENV names.", f"chmod 600 {path}")
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    except OSError as error:
        raise BadValue(f"RD3_DRIVER_ENV names {path}: {error.strerror}.", "mend or unset it") from None
    return {name.strip(): value for name, _equals, value in (line.partition("=") for line in lines)}
