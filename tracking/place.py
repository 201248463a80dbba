"""Where a project's memory lives: plain data that travels to every trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Addresses, no secrets: credentials stay in the environment of each process."""

    tracking_uri: str
    """MLflow: ``sqlite:////.../mlflow.db``, ``http://...``."""
    artifacts: str
    """Root of ledger and artifacts: a folder, or ``s3://bucket/prefix``."""
    home: Path
    """Local scratch and cache of this machine."""
