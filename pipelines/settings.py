"""The one place that reads the environment: where data, state and the tracking server are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rd3.datasets import Roots
from tracking.place import Place


@dataclass(frozen=True)
class Session:
    """What every command works with."""

    roots: Roots
    place: Place

    @property
    def home(self) -> Path:
        return self.place.home

    @property
    def presets(self) -> Path:
        """The user's own protocols, one YAML file each."""
        return self.home / "presets"


def session() -> Session:
    """From ``RD3_HOME`` (default ``.rd3``), ``RD3_DATA``, ``MLFLOW_TRACKING_URI`` and ``RD3_ARTIFACTS``."""
    home = Path(os.environ.get("RD3_HOME") or ".rd3").expanduser().absolute()
    data = os.environ.get("RD3_DATA")
    return Session(
        roots=Roots(data=Path(data).expanduser().absolute() if data else None, home=home),
        place=Place(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
            artifacts=os.environ.get("RD3_ARTIFACTS") or str(home / "artifacts"),
            home=home,
        ),
    )
