"""One trial of a sweep in a worker process: trains students, and stops if the pruner decides so.

It writes to no study, ledger or tracking server and only returns its answer, so it may die at any moment and be run
again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.parents import UNREADABLE
from pipelines.sweep.study import Ended, Pruning, RunningTrial
from pipelines.transfer.datasets import ensure_data
from rd3.errors import Diverged, RD3Error, Unavailable
from rd3.evaluation.sharing import LogitsCache
from rd3.recipe import EvaluationRecipe, Key, from_json
from rd3.store import Entry
from rd3.values import Frozen
from tracking.ledger.retry import retry
from tracking.place import Place
from tracking.store import GivenStore

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ANSWER_WITHIN_S = 15.0
"""Seconds for which a trial waits for a server by itself."""


class Score(Frozen):
    """The score of one evaluation; a stopped one has a partial curve."""

    curve: dict[int, float]
    """Epoch to top-1 accuracy (%) on validation images."""
    top1_pct: float | None = None
    """After the last epoch; None if it was stopped or diverged."""
    diverged: str = ""
    tested: int = 0
    """Number of validation images."""
    wall_s: float = 0.0
    ran_precision: str = ""


@dataclass(frozen=True)
class TrialInput:
    """Input of one trial in a worker, without the earlier trials."""

    sweep: str
    """Name of the sweep's scratch folder."""
    study: str
    number: int
    """Number of the trial in its study."""
    evaluations: list[str]
    """Recipes as JSON, one per student seed; pruning is based on the first."""
    pruning: Pruning
    place: Place
    given: list[dict[str, Any]]
    """Ledger entries of the set and the teachers."""
    known: dict[Key, Score] = field(default_factory=dict)
    """Scores of these evaluations from an earlier trial or driver."""
    gpu: bool = False
    cached_logits: dict[Key, LogitsCache] = field(default_factory=dict)
    """How evaluations handle cached logits of their teachers."""


@dataclass(frozen=True)
class Answer:
    """How a trial ended, with the scores of its evaluations; ``failed``: the error if it did not end regularly."""

    ended: Ended | None
    scores: dict[Key, Score]
    failed: str = ""
    away: bool = False
    """Whether ``failed`` says what does not respond, so that the trial can be run again with these scores."""


class _Stop(Exception):
    """Raised in a callback to stop the training."""


def run_sweep_trial(trial: TrialInput, before: Sequence[FrozenTrial]) -> Answer:
    """Evaluate a point in a worker process; ``before``: trials of the finished batches, for pruning."""
    from pipelines.engine.trial import configure_process, die_with_parent

    configure_process(trial.gpu)
    die_with_parent()
    return evaluate_point(trial, before)


def evaluate_point(trial: TrialInput, before: Sequence[FrozenTrial]) -> Answer:
    """Evaluate a point; only the first student seed is pruned, the others run to their end."""
    first, *others = (_evaluation(text) for text in trial.evaluations)
    facts: dict[str, Any] = {"evaluations": [first.key, *(recipe.key for recipe in others)]}
    scores: dict[Key, Score] = {}
    started = partial(RunningTrial, trial.study, trial.number, before, trial.pruning)
    try:
        running = started()
        score, pruned = _replayed(trial.known.get(first.key), running)
        if score is None:
            running = started()
            score, pruned = _trained(trial, first, running)
        scores[first.key] = score
        for recipe in others if score.top1_pct is not None and not pruned else ():
            score, _never = _replayed(trial.known.get(recipe.key), None)
            scores[recipe.key] = score or _trained(trial, recipe, None)[0]
    except Unavailable as error:
        return Answer(None, scores, error.message, away=True)
    except RD3Error as error:
        return Answer(None, scores, str(error))
    except Exception as error:  # any error is reported by the driver, which stops
        return Answer(None, scores, f"{type(error).__name__}: {error}")
    diverged = next((score.diverged for score in scores.values() if score.diverged), "")
    if pruned or diverged:
        facts["stopped"] = diverged if not pruned else f"pruned after epoch {max(running.curve)}"
        return Answer(Ended("PRUNED", None, running.curve, running.rungs, facts), scores)
    found = [score.top1_pct for score in scores.values() if score.top1_pct is not None]
    facts |= {"top1_pct": found, "tested": scores[first.key].tested}
    facts["ran_precision"] = sorted({score.ran_precision for score in scores.values() if score.ran_precision})
    curve = {**running.curve, first.protocol.epochs: found[0]}
    return Answer(Ended("COMPLETE", sum(found) / len(found), curve, running.rungs, facts), scores)


def _evaluation(text: str) -> EvaluationRecipe:
    recipe = from_json(text)
    assert isinstance(recipe, EvaluationRecipe)
    return recipe


def _replayed(known: Score | None, running: RunningTrial | None) -> tuple[Score | None, bool]:
    """(known score, pruned), with its curve replayed for the pruner; None if the known score is incomplete."""
    if known is None:
        return None, False
    if running is not None and any(running.report(*step) for step in sorted(known.curve.items())):
        return known, True
    return (known if known.diverged or known.top1_pct is not None else None), False


def _trained(trial: TrialInput, recipe: EvaluationRecipe, running: RunningTrial | None) -> tuple[Score, bool]:
    """(score, pruned) of an evaluation that is trained now; once more if a file was damaged after its check."""
    curve: dict[int, float] = {}
    began = time.perf_counter()

    def tested(epoch: int, top1_pct: float) -> None:
        curve[epoch] = top1_pct
        if running is not None and running.report(epoch, top1_pct):
            raise _Stop

    scratch = scratch_folder(trial.place.home, trial.sweep)
    scratch.mkdir(parents=True, exist_ok=True)
    out = Path(tempfile.mkdtemp(prefix=f"{recipe.key[:12]}-{os.getpid()}-", dir=scratch))
    try:
        try:
            result = _performed(trial, recipe, out, tested)
        except UNREADABLE:
            if curve:  # all files had been read by the first test
                raise
            result = _performed(trial, recipe, out, tested)  # with files that are verified or fetched again
    except _Stop:
        return Score(curve=curve, wall_s=time.perf_counter() - began), True
    except Diverged as error:
        return Score(curve=curve, diverged=error.message, wall_s=time.perf_counter() - began), False
    finally:
        shutil.rmtree(out, ignore_errors=True)
    measured = {name: result[name] for name in ("top1_pct", "tested", "ran_precision")}
    return Score(curve=curve, wall_s=time.perf_counter() - began, **measured), False


def _performed(
    trial: TrialInput, recipe: EvaluationRecipe, out: Path, tested: Callable[[int, float], None]
) -> dict[str, Any]:
    """The result of an evaluation, whose dataset and inputs are brought to this machine and verified."""
    from rd3.perform import perform

    place, device, cached = trial.place, "cuda" if trial.gpu else "cpu", trial.cached_logits.get(recipe.key)
    _retry(partial(ensure_data, place, recipe.data))
    store = GivenStore(place, [Entry.model_validate(entry) for entry in trial.given])
    for kind, key in recipe.parents():  # into the cache that the training reads
        _retry(partial(store.fetch, kind, key))
    return perform(recipe, store, place.roots, out, device=device, tested=tested, cached_logits=cached).result


def _retry(ask: Callable[[], object]) -> None:
    """Call a server with retries for seconds; after that the driver says what is away, and runs the trial again."""
    retry(ask, give_up_after_s=ANSWER_WITHIN_S)


def scratch_folder(home: Path, sweep: str) -> Path:
    """Scratch folder for the trials of a sweep on this machine."""
    return home / "work" / "sweep" / sweep
