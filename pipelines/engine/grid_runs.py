"""The MLflow runs of one execution: the run of the grid itself, and those that ended trials leave open."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.grid.queue import Unsuccessful
from rd3.errors import RD3Error, Unavailable
from rd3.recipe import Key
from tracking.ledger.retry import retry

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion

_CLOSE_WITHIN_S = 10.0
"""How long an interrupted driver waits for an unreachable tracking server."""


class GridRuns:
    """The runs of one execution, which is opened once and then closed or abandoned."""

    def __init__(self, expansion: Expansion, books: Bookkeeping):
        self.experiment_id = ""
        self.grid_run_id: str | None = None
        self._expansion, self._books, self._tracker = expansion, books, books.tracker

    def open(self, experiment: str) -> None:
        """Open the experiment and the grid's own run, and close runs of dead drivers."""
        self.experiment_id = self._tracker.experiment(experiment)
        self._tracker.close_dead_runs(self.experiment_id, "its driver died")
        grid = self._expansion.grid
        if grid is not None:
            self.grid_run_id = self._tracker.grid_run(self.experiment_id, grid.name, grid_yaml=grid.text)

    def close(self, ok: bool, unsuccessful: Mapping[Key, Unsuccessful]) -> None:
        """Close the grid's run, and the runs of workers that died.

        ``ok``: every recipe is done; ``unsuccessful``: how recipes without a result ended.
        """
        if self.grid_run_id is not None:
            self._books.retry(partial(self._tracker.close_grid, self.grid_run_id, ok))
        self._books.retry(partial(self._tracker.close_dead_runs, self.experiment_id, "its process died", unsuccessful))
        if self.grid_run_id is not None and self._expansion.cells:
            with contextlib.suppress(RD3Error):  # `rd3 report` publishes them again
                self._books.retry(partial(self._publish, self.grid_run_id, unsuccessful))

    def _publish(self, run_id: str, unsuccessful: Mapping[Key, Unsuccessful]) -> None:
        """Attach tables and charts of the grid to its run."""
        from tracking.report.entries import GridEntries
        from tracking.report.publish import publish_tables

        grid, cells = self._expansion.source_grid, self._expansion.cells
        facts: dict[str, object] = {
            "description": grid.description,
            "claim": grid.claim,
            "failures": {key: f"{status}: {reason}" for key, (status, reason) in unsuccessful.items()},
        }
        entries = GridEntries.of(cells, self._books.ledger)
        entries.compare(self._tracker)
        with tempfile.TemporaryDirectory() as folder:
            publish_tables(self._tracker, run_id, grid.name, cells, entries.find, Path(folder), entries.runs, **facts)

    def abandon(self, reason: str) -> None:
        """Close all runs of a driver that ends early."""
        if self.experiment_id:
            close_dead = partial(self._tracker.close_dead_runs, self.experiment_id, reason)
            with contextlib.suppress(Unavailable):  # the next run closes them
                retry(close_dead, give_up_after_s=_CLOSE_WITHIN_S)
