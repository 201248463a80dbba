"""Where a project's ledger, artifacts and MLflow runs are kept: plain data that is passed to every trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rd3.datasets import Roots


@dataclass(frozen=True)
class Place:
    """Addresses without secrets: credentials stay in the environment of each process."""

    tracking_uri: str
    """MLflow: ``sqlite:////.../mlflow.db``, ``http://...``."""
    artifacts: str
    """Root of the ledger and the artifacts: a folder or ``s3://bucket/prefix``."""
    home: Path
    """Scratch and cache folder on this machine."""
    data: Path | None = None
    """Folder of datasets, which may be read-only."""
    decoded: Path | None = None
    """Where decoded datasets are kept, if not in ``home``."""
    ledger_id: str = ""
    """Identity of the ledger (:mod:`tracking.ledger.identity`); without one, all runs of its path count as its own."""
    lease: str = ""
    """Token of the driver's lease, a tag of all runs that the driver opens."""
    user: str = ""
    """Who started the driver."""
    work: str = ""
    """What the driver runs, such as ``grid demo``."""

    @property
    def roots(self) -> Roots:
        """Where datasets are read and kept."""
        return Roots(data=self.data, home=self.decoded or self.home)
