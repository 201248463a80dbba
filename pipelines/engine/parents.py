"""The inputs of a recipe on a worker: its dataset and the files of its parents."""

from __future__ import annotations

import platform
from functools import partial

from safetensors import SafetensorError

from pipelines.engine.job import Job
from pipelines.engine.waiting import retry_shown
from pipelines.transfer.datasets import ensure_data
from rd3.errors import DataCorrupt, DataMissing, RD3Error
from rd3.perform import Progress
from rd3.recipe import Recipe
from rd3.store import ReadableStore

UNREADABLE = (DataMissing, DataCorrupt, FileNotFoundError, SafetensorError)
"""Errors from files that were damaged or removed after they were verified."""


class BrokenParents(RD3Error):
    """Parents of this recipe are missing or damaged."""

    def __init__(self, message: str, parents: list[tuple[str, str]]):
        super().__init__(message)
        self.parents = parents


def fetch_inputs(job: Job, recipe: Recipe, store: ReadableStore, progress: Progress) -> None:
    """Fetch the dataset and the parents, with retries while a server is unreachable; raises :class:`BrokenParents`."""
    retry_shown(partial(ensure_data, job.place, recipe.data, progress), progress)
    broken, reasons = [], []
    for kind, key in recipe.parents():
        try:
            retry_shown(partial(store.fetch, kind, key), progress)
        except (DataMissing, DataCorrupt) as error:
            broken.append((kind, key))
            reasons.append(error.message)
    if broken:
        raise BrokenParents(f"{' '.join(reasons)} Read on {platform.node()}.", broken)
