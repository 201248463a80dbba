"""What must hold before a run writes anything: servers that answer, let us in, and share our time and versions."""

from __future__ import annotations

from pipelines.cluster import ray_cluster
from pipelines.settings import Session
from tracking.health import check_place


def check_platform(session: Session, address: str | None = None) -> None:
    """Raise one sentence, with its fix, for the first thing that would stop a run on this platform.

    ``address``: the Ray cluster that is to work; it is joined and left again, which takes a second.
    """
    check_place(session.place)
    if address:
        with ray_cluster(session.home, address):
            pass
