"""From a recipe of the queue to the job that a worker receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.grid_runs import GridRuns
from pipelines.engine.job import Job
from pipelines.engine.shards import Share
from pipelines.grid.queue import Demand, Queued, RecipeQueue
from rd3.recipe import EvaluationRecipe, Recipe
from rd3.values import canonical
from tracking.runs.fields import parent_facts

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion

_FINISHED = 256
"""Maximum number of finished recipes whose scratch folders a worker deletes."""


class JobBuilder:
    """Builds the jobs of one execution."""

    def __init__(
        self,
        expansion: Expansion,
        queue: RecipeQueue,
        books: Bookkeeping,
        runs: GridRuns,
        *,
        keep_unfinished: bool = False,
    ):
        """``keep_unfinished``: machines may disappear, so unfinished work is uploaded."""
        self._expansion, self._queue, self._books, self._runs = expansion, queue, books, runs
        self._keep_unfinished = keep_unfinished

    def job(self, queued: Queued, demand: Demand) -> Job:
        """The job of a recipe or of a share of one, with the entries of all its ancestors."""
        key, larger_sets, grid = queued.key, self._expansion.larger_sets, self._expansion.grid
        recipe = queued.of if isinstance(queued, Share) else self._expansion.recipes[key]
        larger = larger_sets.get(recipe.key)
        parents = [*recipe.parents(), *([("set", larger)] if larger else [])]
        keeps = isinstance(recipe, EvaluationRecipe) and self._expansion.keeps_students
        recorded = self._books.recorded(recipe.key) if keeps else None
        return Job(
            kind=recipe.kind,
            key=recipe.key,
            recipe=canonical(recipe.model_dump(mode="json")),
            facts=self._facts(recipe),
            place=self._books.session,
            experiment_id=self._runs.experiment_id,
            parent_run_id=self._runs.grid_run_id,
            grid=grid.name if grid is not None and self._expansion.is_result(recipe.key) else "",
            gpu=demand.gpus > 0,
            alone=demand.whole,
            larger=larger,
            blocks=queued.blocks if isinstance(queued, Share) else None,
            # What a set waits for is a larger set that begins with it, or else its own shares.
            blocks_uploaded=bool(self._queue.after.get(key)) and key not in larger_sets,
            given=[entry.model_dump(mode="json") for entry in self._books.entries(parents).values()],
            keep_student=keeps,
            recorded=recorded.model_dump(mode="json") if recorded is not None else None,
            keep_unfinished=self._keep_unfinished,
            ignore_earlier=recipe.key in self._books.removed,
            finished=self._books.finished[-_FINISHED:],
        )

    def _facts(self, recipe: Recipe) -> dict[str, Any]:
        """Parameters to filter runs by: the grid's names, and facts of the parents."""
        parents = self._books.entries(recipe.parents())
        return parent_facts(recipe, lambda _kind, key: parents.get(key)) | self._expansion.facts(recipe.key)
