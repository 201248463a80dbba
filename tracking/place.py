"""Where a project's ledger, artifacts and MLflow runs are kept: plain data that is passed to every trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Addresses without secrets: credentials stay in the environment of each process."""

    tracking_uri: str
    """MLflow: ``sqlite:////.../mlflow.db``, ``http://...``."""
    artifacts: str
    """Root of the ledger and the artifacts: a folder or ``s3://bucket/prefix``."""
    home: Path
    """Scratch and cache folder on this machine."""
