"""From a recipe of the queue to the job that a worker receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.grid_runs import GridRuns
from pipelines.engine.job import Job
from pipelines.engine.shards import Share
from pipelines.grid.queue import Demand, Queued, RecipeQueue
from rd3.recipe import EvaluationRecipe
from rd3.values import canonical
from tracking.runs.fields import parent_facts

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion

_FINISHED = 256
"""Maximum number of finished recipes whose scratch folders a worker deletes."""


@dataclass
class JobBuilder:
    """Builds the jobs of one execution."""

    expansion: Expansion
    queue: RecipeQueue
    books: Bookkeeping
    runs: GridRuns
    keep_unfinished: bool = False
    """Machines may disappear, so unfinished work is uploaded."""

    def job(self, queued: Queued, demand: Demand) -> Job:
        """The job of a recipe or of a share of one, with the entries of all its ancestors."""
        key, larger_sets, grid = queued.key, self.expansion.larger_sets, self.expansion.grid
        recipe = queued.of if isinstance(queued, Share) else self.expansion.recipes[key]
        larger = larger_sets.get(recipe.key)
        entries = self.books.entries([*recipe.parents(), *([("set", larger)] if larger else [])])
        keeps = isinstance(recipe, EvaluationRecipe) and self.expansion.keeps_students
        recorded = self.books.recorded(recipe.key) if keeps else None
        return Job(
            kind=recipe.kind,
            key=recipe.key,
            recipe=canonical(recipe.model_dump(mode="json")),
            # Parameters to filter runs by: of the parents, and the grid's names.
            facts=parent_facts(recipe, lambda _kind, key: entries.get(key)) | self.expansion.facts(recipe.key),
            place=self.books.session,
            experiment_id=self.runs.experiment_id,
            parent_run_id=self.runs.grid_run_id,
            grid=grid.name if grid is not None and self.expansion.is_result(recipe.key) else "",
            gpu=demand.gpus > 0,
            alone=demand.whole,
            larger=larger,
            blocks=queued.blocks if isinstance(queued, Share) else None,
            # What a set waits for is a larger set that begins with it, or else its own shares.
            blocks_uploaded=bool(self.queue.after.get(key)) and key not in larger_sets,
            given=[entry.model_dump(mode="json") for entry in entries.values()],
            keep_student=keeps,
            recorded=recorded.model_dump(mode="json") if recorded is not None else None,
            keep_unfinished=self.keep_unfinished,
            ignore_earlier=recipe.key in self.books.removed,
            finished=self.books.finished[-_FINISHED:],
        )
