"""The MLflow run of one attempt at a recipe."""

from __future__ import annotations

import contextlib
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pipelines.engine.job import Job
from pipelines.engine.waiting import retry_shown
from rd3.errors import RD3Error, Unavailable, why
from rd3.perform import Progress
from rd3.recipe import Recipe
from rd3.store import Entry
from tracking.place import Place

if TYPE_CHECKING:
    from tracking.runs.runs import OpenRun, Tracker
    from tracking.runs.unfinished import UnfinishedWork


class RecipeRun:
    """The MLflow run of a recipe, opened when the server responds and there is something to log."""

    def __init__(self, job: Job, recipe: Recipe, number: int, progress: Progress):
        self._job, self._recipe, self._number, self._progress = job, recipe, number, progress
        self._run: OpenRun | None = None

    def begin(self) -> UnfinishedWork | None:
        """Open the run; returns the uploader of unfinished work, which needs the run, if such work is to be kept."""
        from tracking.runs.unfinished import UnfinishedWork

        if self._job.keep_unfinished:
            # what another machine had made is in this run
            return UnfinishedWork(self._opened_run(0.0), self._job.folder / "result")
        with contextlib.suppress(Unavailable):
            self._run = self._open()
        return None

    def _open(self) -> OpenRun:
        job = self._job
        return _tracker(job.place).begin(
            self._recipe,
            job.facts,
            experiment_id=job.experiment_id,
            parent_run_id=job.parent_run_id,
            attempt=self._number,
            grid=job.grid,
        )

    def _opened_run(self, fraction: float = 1.0) -> OpenRun:
        """The run, opened with retries if it is not open yet; ``fraction``: progress that is shown meanwhile."""
        self._run = self._run or retry_shown(self._open, self._progress, fraction)
        return self._run

    def finish(self, entry: Entry, **shown: Any) -> Entry:
        """Upload everything; returns the entry with its location.  ``shown``: as of :meth:`OpenRun.finish`."""
        run = self._opened_run()
        return retry_shown(partial(run.finish, entry, self._job.folder / "result", **shown), self._progress, 1.0)

    def fail(self, error: Exception) -> None:
        """Close the run as failed.  A failing tracking server must not hide why the recipe failed."""
        with contextlib.suppress(RD3Error):
            if not isinstance(error, Unavailable):
                retry_shown(partial(self._opened_run().fail, *why(error)), self._progress, 1.0)
            elif self._run is not None:  # a server that was unreachable for long is not retried
                self._run.fail(*why(error))


@cache
def _tracker(place: Place) -> Tracker:
    """One connection per process: opening MLflow's database takes longer than a small trial."""
    from tracking.runs.runs import Tracker

    return Tracker(place)
