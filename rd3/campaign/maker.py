"""Makes recipes one after the other in one process, and says how each ended; the store is where results go."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rd3.datasets import Roots
from rd3.errors import RD3Error, why
from rd3.recipe import AnyRecipe, Key, from_json
from rd3.store import FolderStore, write_atomically

TELL_EVERY_S = 0.5
FAILURE = "failure.txt"
"""In a recipe's scratch folder: where in the code its last attempt failed."""


class Stopped(BaseException):
    """The recipe under way is to be left as it is; not an error, so nothing on the way may catch it."""


class Moved(NamedTuple):
    """A recipe is so far."""

    key: Key
    fraction: float
    note: str


class Ended(NamedTuple):
    """A recipe ended: ``done``, ``unfinished`` (it was stopped), or a status of :mod:`rd3.store` with the reason."""

    key: Key
    status: str
    reason: str = ""
    spent_s: float = 0.0
    figures: dict[str, float] = {}
    mistake: bool = False
    """The user can mend what the reason says."""
    broken: bool = False
    """The process is not fit for another recipe: its memory or its device is in no known state."""


Event = Moved | Ended
Say = Callable[[Event], None]


@dataclass(frozen=True)
class Maker:
    """What a process needs to make recipes; plain data, so that it travels to a worker."""

    store: Path
    roots: Roots
    out: Path
    device: str = "cpu"
    threads: int = 1
    shared_machine: bool | None = None
    larger: dict[Key, Key] = field(default_factory=dict)
    """Small sets to the larger ones that hold their images."""

    def prepare(self) -> None:
        """Once a process, before the first recipe: what takes long to load, and how torch behaves."""
        settle_torch(self.threads)

    def make(self, documents: Sequence[str], say: Say, stopping: Callable[[], bool]) -> bool:
        """Make recipes (JSON) in order; False if this process is not fit for more.

        Recipes that come together may be made side by side; today they are made one after the other.
        """
        recipes = [from_json(document) for document in documents]
        for recipe in recipes:
            ended = Ended(recipe.key, "unfinished") if stopping() else self._make_one(recipe, say, stopping)
            say(ended)
            if ended.broken:
                return False
        return True

    def _make_one(self, recipe: AnyRecipe, say: Say, stopping: Callable[[], bool]) -> Ended:
        begun, told = time.monotonic(), [float("-inf")]
        out = self.out / recipe.key

        def progress(fraction: float, note: str) -> None:
            if stopping():
                raise Stopped
            if time.monotonic() - told[0] >= TELL_EVERY_S:
                told[0] = time.monotonic()
                say(Moved(recipe.key, fraction, note))

        try:
            result = self.perform(recipe, out, progress)
        except Stopped:
            return Ended(recipe.key, "unfinished")
        except Exception as error:  # whatever it is, it is this recipe's, and the others go on
            write_atomically(out / FAILURE, traceback.format_exc())
            status, reason = why(error)
            mistake = isinstance(error, RD3Error) and status == "failed"
            return Ended(recipe.key, status, reason, mistake=mistake, broken=_breaks_the_process(error, status))
        figures = {name: value for name, value in result.items() if isinstance(value, int | float)}
        return Ended(recipe.key, "done", "", time.monotonic() - begun, figures)

    def perform(self, recipe: AnyRecipe, out: Path, progress: Callable[[float, str], None]) -> dict[str, object]:
        """One recipe from the store's parents into the store; the figures of its entry."""
        from rd3.run import perform

        store = FolderStore(self.store)
        entry = perform(
            recipe,
            store,
            self.roots,
            out,
            device=self.device,
            shared_machine=self.shared_machine,
            larger=self.larger.get(recipe.key),
            progress=progress,
        )
        store.put(entry, out / "result")
        if self.device.startswith("cuda"):
            _give_memory_back()
        return entry.result


def settle_torch(threads: int) -> None:
    """How torch behaves in a process that makes recipes."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def _give_memory_back() -> None:
    """What torch keeps of a device's memory for later is of use to the other workers."""
    import torch

    torch.cuda.empty_cache()


def _breaks_the_process(error: Exception, status: str) -> bool:
    """Out of memory, or a CUDA error, after which every later call of the process fails as well."""
    return status == "oom" or "CUDA error" in str(error)
