"""What must hold before a run writes anything: servers that answer, let us in, and share our time and versions."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.cluster import ray_cluster
from pipelines.nodes import check_nodes
from pipelines.settings import Session
from tracking.health import check_place


def check_platform(session: Session, address: str | None = None, datasets: Iterable[str] = ()) -> None:
    """Raise one sentence, with its fix, for the first thing that would stop a run on this platform.

    ``address``: the Ray cluster that is to work; it is joined, its nodes are asked, also for ``datasets``, and left.
    """
    check_place(session.place)
    if address:
        with ray_cluster(session.home, address):
            check_nodes(session.place, session.roots, datasets)
