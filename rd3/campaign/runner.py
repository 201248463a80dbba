"""Run recipes in one process, put the results into the store and report how each recipe ended."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rd3.campaign.running import CHECKPOINT_UNUSABLE
from rd3.datasets import Roots
from rd3.device import configure_torch
from rd3.errors import RD3Error, ends_the_process, why
from rd3.evaluation.sharing import LogitsCache
from rd3.kept_students import add_student
from rd3.lazy import torch
from rd3.recipe import EvaluationRecipe, Key, Recipe, from_json
from rd3.store import STUDENT, Entry, FolderStore, write_atomically

REPORT_EVERY_S = 0.5
FAILURE = "failure.txt"
"""File in a recipe's scratch folder with the traceback of its last failure."""


class Stopped(BaseException):
    """Stop the running recipe; not an :class:`Exception`, so that no handler on the way catches it."""


class Progressed(NamedTuple):
    """Progress of a recipe: finished fraction (0-1) and a note."""

    key: Key
    fraction: float
    note: str


class Ended(NamedTuple):
    """A recipe ended: ``done``, ``unfinished`` (it was stopped), or a status of :mod:`rd3.errors` with the reason."""

    key: Key
    status: str
    reason: str = ""
    spent_s: float = 0.0
    top1_pct: float | None = None
    """Top-1 accuracy in per cent, of recipes that have one."""
    mistake: bool = False
    """Whether the user can fix the reason."""
    broken: bool = False
    """Whether the process must not run another recipe, because its memory or device is in an unknown state."""
    pack: int = 1
    """Number of recipes run together; the time of a pack says little about the time of one of them alone."""
    logits_read: bool = False
    """Whether cached logits of teachers were read; its time says little about an evaluation that asks them."""


Event = Progressed | Ended
Report = Callable[[Event], None]


@dataclass(frozen=True)
class Runner:
    """Runs recipes; plain data, so that it can be pickled for a worker."""

    store: Path
    roots: Roots
    out: Path
    device: str = "cpu"
    threads: int = 1
    shared_machine: bool | None = None
    """Whether other work runs at the same time, for the manifests of sets; None: unknown."""
    larger: dict[Key, Key] = field(default_factory=dict)
    """Keys of smaller sets to the key of a larger set that contains their images."""
    kept: frozenset[Key] = frozenset()
    """Keys of evaluations that keep the weights of their student."""

    def prepare(self) -> None:
        """Load and configure torch; called once per process, before the first recipe."""
        configure_torch(self.threads)

    def run(
        self,
        documents: Sequence[str],
        report: Report,
        should_stop: Callable[[], bool],
        cached_logits: Mapping[Key, LogitsCache] | None = None,
    ) -> bool:
        """Run recipes (as JSON), evaluations together and others in order; False if the process must not run more.

        ``cached_logits``: how evaluations handle cached logits of their teachers, by key.
        """
        cached_logits = cached_logits or {}
        recipes = [from_json(document) for document in documents]
        evaluations = [recipe for recipe in recipes if isinstance(recipe, EvaluationRecipe)]
        if len(evaluations) > 1 and not should_stop():
            together = self._run_pack(evaluations, report, should_stop, cached_logits)
            for each in together:
                report(each)
            finished = {each.key for each in together}
            recipes = [recipe for recipe in recipes if recipe.key not in finished]
            if any(each.broken for each in together):
                return False
        for recipe in recipes:
            if should_stop():
                ended = Ended(recipe.key, "unfinished")
            else:
                ended = self._run_one(recipe, report, should_stop, cached_logits.get(recipe.key))
            report(ended)
            if ended.broken:
                return False
        return True

    def _run_one(
        self, recipe: Recipe, report: Report, should_stop: Callable[[], bool], cached_logits: LogitsCache | None
    ) -> Ended:
        """Run one recipe with parents from the store, and put it into the store."""
        from rd3.perform import perform

        started_at, store, out = time.monotonic(), FolderStore(self.store), self.out / recipe.key
        try:
            entry = perform(
                recipe,
                store,
                self.roots,
                out,
                device=self.device,
                shared_machine=self.shared_machine,
                larger=self.larger.get(recipe.key),
                progress=_progress(recipe, report, should_stop),
                keep_student=recipe.key in self.kept,
                cached_logits=cached_logits,
            )
            _put(store, entry, out / "result")
        except Stopped:
            return Ended(recipe.key, "unfinished")
        except Exception as error:  # any error is this recipe's own; the others still run
            return self._failed(recipe, error)
        finally:
            self._release_memory()
        return _done(entry, time.monotonic() - started_at)

    def _run_pack(
        self,
        recipes: Sequence[EvaluationRecipe],
        report: Report,
        should_stop: Callable[[], bool],
        cached_logits: Mapping[Key, LogitsCache],
    ) -> list[Ended]:
        """Run evaluations together; empty if the pack as a whole failed, so that each is run alone instead."""
        from rd3.perform import Part, perform_pack

        started_at, store = time.monotonic(), FolderStore(self.store)
        pack = [
            Part(
                one,
                self.out / one.key,
                _progress(one, report, should_stop),
                keep_student=one.key in self.kept,
                cached_logits=cached_logits.get(one.key),
            )
            for one in recipes
        ]
        try:
            outcomes = perform_pack(pack, store, self.roots, device=self.device)
        except Stopped:
            return [Ended(one.key, "unfinished") for one in recipes]
        except Exception as error:
            ended = [self._failed(one, error) for one in recipes]
            return ended if ended[0].broken else []
        finally:
            self._release_memory()
        spent_s, ended = time.monotonic() - started_at, []
        for part, outcome in zip(pack, outcomes, strict=True):
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                _put(store, outcome, part.out / "result")
                ended.append(_done(outcome, spent_s, pack=len(pack)))
            except Exception as error:  # it ends no other recipe of the pack
                ended.append(self._failed(part.recipe, error))
        return ended

    def _failed(self, recipe: Recipe, error: Exception) -> Ended:
        keep_traceback(error, self.out / recipe.key)
        status, reason = why(error)
        mistake = isinstance(error, RD3Error) and status == "failed"
        return Ended(recipe.key, status, reason, mistake=mistake, broken=ends_the_process(error))

    def _release_memory(self) -> None:
        """Release torch's cached device memory for the other workers."""
        if self.device.startswith("cuda"):
            with contextlib.suppress(RuntimeError):  # the device may be in an unknown state
                torch.cuda.empty_cache()


def keep_traceback(error: Exception, folder: Path) -> None:
    """Write the traceback of a failure to a recipe's scratch folder."""
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # a disk that is full or not writable, which may be the error itself
        write_atomically(folder / FAILURE, text)


def _put(store: FolderStore, entry: Entry, folder: Path) -> None:
    """Put an entry into the store; to an evaluation that the store has without its student, that is added."""
    known = store.find(entry.kind, entry.key)
    if known is not None and STUDENT in entry.files and STUDENT not in known.files:
        add_student(store, entry, folder)
    else:
        store.put(entry, folder)


def _progress(recipe: Recipe, report: Report, should_stop: Callable[[], bool]) -> Callable[[float, str], None]:
    """A callback that reports progress at intervals, restarts always, and raises :class:`Stopped` on request."""
    reported = [float("-inf")]

    def progress(fraction: float, note: str) -> None:
        if should_stop():
            raise Stopped
        if note.startswith(CHECKPOINT_UNUSABLE) or time.monotonic() - reported[0] >= REPORT_EVERY_S:
            reported[0] = time.monotonic()
            report(Progressed(recipe.key, fraction, note))

    return progress


def _done(entry: Entry, spent_s: float, pack: int = 1) -> Ended:
    read = "cached_logits" in entry.made
    return Ended(entry.key, "done", "", spent_s, entry.result.get("top1_pct"), pack=pack, logits_read=read)
