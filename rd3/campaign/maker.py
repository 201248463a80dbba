"""Makes recipes one after the other in one process, and says how each ended; the store is where results go."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rd3.datasets import Roots
from rd3.errors import RD3Error, ends_the_process, why
from rd3.recipe import AnyRecipe, EvaluationRecipe, Key, from_json
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
    pack: int = 1
    """How many were made together; what one of several took says little of what it takes alone."""


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
        """Make recipes (JSON), evaluations together and others in order; False if this process is not fit for more."""
        recipes = [from_json(document) for document in documents]
        evaluations = [recipe for recipe in recipes if isinstance(recipe, EvaluationRecipe)]
        if len(evaluations) > 1 and not stopping():
            together = self._make_pack(evaluations, say, stopping)
            for each in together:
                say(each)
            made = {each.key for each in together}
            recipes = [recipe for recipe in recipes if recipe.key not in made]
            if any(each.broken for each in together):
                return False
        for recipe in recipes:
            ended = Ended(recipe.key, "unfinished") if stopping() else self._make_one(recipe, say, stopping)
            say(ended)
            if ended.broken:
                return False
        return True

    def _make_one(self, recipe: AnyRecipe, say: Say, stopping: Callable[[], bool]) -> Ended:
        begun, out = time.monotonic(), self.out / recipe.key
        try:
            result = self.perform(recipe, out, _progress(recipe, say, stopping))
        except Stopped:
            return Ended(recipe.key, "unfinished")
        except Exception as error:  # whatever it is, it is this recipe's, and the others go on
            return self._failed(recipe, error)
        return Ended(recipe.key, "done", "", time.monotonic() - begun, _figures(result))

    def _make_pack(self, recipes: Sequence[EvaluationRecipe], say: Say, stopping: Callable[[], bool]) -> list[Ended]:
        """Evaluations together; none where what failed concerns them all: then each is made alone."""
        from rd3.perform import Part, perform_pack

        begun, store = time.monotonic(), FolderStore(self.store)
        pack = [Part(one, self.out / one.key, _progress(one, say, stopping)) for one in recipes]
        try:
            outcomes = perform_pack(pack, store, self.roots, device=self.device)
        except Stopped:
            return [Ended(one.key, "unfinished") for one in recipes]
        except Exception as error:
            ended = [self._failed(one, error) for one in recipes]
            return ended if ended[0].broken else []
        finally:
            self._give_memory_back()
        spent_s, ended = time.monotonic() - begun, []
        for part, outcome in zip(pack, outcomes, strict=True):
            if isinstance(outcome, Exception):
                ended.append(self._failed(part.recipe, outcome))
            else:
                store.put(outcome, part.out / "result")
                figures = _figures(outcome.result)
                ended.append(Ended(part.recipe.key, "done", "", spent_s, figures, pack=len(pack)))
        return ended

    def _failed(self, recipe: AnyRecipe, error: Exception) -> Ended:
        text = "".join(traceback.format_exception(error))
        write_atomically(self.out / recipe.key / FAILURE, text)
        status, reason = why(error)
        mistake = isinstance(error, RD3Error) and status == "failed"
        return Ended(recipe.key, status, reason, mistake=mistake, broken=ends_the_process(error))

    def perform(self, recipe: AnyRecipe, out: Path, progress: Callable[[float, str], None]) -> dict[str, object]:
        """One recipe from the store's parents into the store; the figures of its entry."""
        from rd3.perform import perform

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
        self._give_memory_back()
        return entry.result

    def _give_memory_back(self) -> None:
        """What torch keeps of a device's memory for later is of use to the other workers."""
        import torch

        if self.device.startswith("cuda"):
            with contextlib.suppress(RuntimeError):  # the device may be in no known state
                torch.cuda.empty_cache()


def _progress(recipe: AnyRecipe, say: Say, stopping: Callable[[], bool]) -> Callable[[float, str], None]:
    """Says now and then how far a recipe is, and leaves it when it is time to stop."""
    told = [float("-inf")]

    def progress(fraction: float, note: str) -> None:
        if stopping():
            raise Stopped
        if time.monotonic() - told[0] >= TELL_EVERY_S:
            told[0] = time.monotonic()
            say(Moved(recipe.key, fraction, note))

    return progress


def _figures(result: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


def settle_torch(threads: int) -> None:
    """How torch behaves in a process that makes recipes."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
