"""Run a sweep: sets and teachers without validation images, the trials, then a single test of the winner.

The driver may be killed at any moment; running the command again resumes the studies.  Only the driver writes studies,
scores, presets and MLflow runs, under the sweep's own lease.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from pipelines.cluster.local import dead_service, ray_log, watched
from pipelines.cluster.nodes import check_platform
from pipelines.cluster.ray import cluster_devices, error_line, ray_cluster
from pipelines.engine.execute import execute
from pipelines.engine.interrupts import INTERRUPTED, Interrupts
from pipelines.engine.workers import RayWorkers
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.plan import Plan, plan_session
from pipelines.settings import Session
from pipelines.sweep.progress import TrialView, open_trial_view
from pipelines.sweep.storage import open_storage
from pipelines.sweep.study import Ended, Tuning
from pipelines.sweep.subject import Subject, sweep_key
from pipelines.sweep.values import Sweep
from pipelines.sweep.winner import (
    Tested,
    WinnerTest,
    check_free,
    record,
    recorded_tests,
    winner_preset,
    winner_test,
    write_preset,
)
from pipelines.sweep.worker import Answer, Score, TrialInput, run_sweep_trial, scratch_folder
from pipelines.terminal import printable
from rd3.errors import DataCorrupt, RD3Error, Unavailable
from rd3.evaluation.logits_folder import LogitsFolder
from rd3.evaluation.packing import Views
from rd3.protocol import Preset
from rd3.recipe import EvaluationRecipe, Key
from rd3.values import canonical
from tracking.ledger.faults import without_password
from tracking.ledger.retry import GIVE_UP_AFTER_S, retry
from tracking.runs.fields import params as shown_params
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import SweepRecords, SweepRuns, TrialRun

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")

RETRIES = 2
"""How often a trial is restarted after its process died."""
_POLL_EVERY_S = 0.5
SLOW_S = 20.0
"""Time after which the driver says that it waits for MLflow, whose requests time out after 120 s."""


@dataclass
class SweepOutcome:
    subjects: list[Subject]
    tunings: dict[str, Tuning] = field(default_factory=dict)
    """Method label to study."""
    winners: dict[str, Preset] = field(default_factory=dict)
    tests: dict[str, list[Tested]] = field(default_factory=dict)
    """Method label to every recorded test for the same target."""
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    """(status, reason, label) of failed recipes and trials."""
    interrupted: str = ""

    @property
    def exit_code(self) -> int:
        """Of the command: 3 after a failure, that of an interruption after a signal, else 0."""
        return INTERRUPTED if self.interrupted else 3 if self.failed else 0


Publish = Callable[[SweepOutcome], dict[str, bytes | str]]
"""Writes the report; returns the files to attach to the sweep's MLflow run."""


class TrialFailed(RD3Error):
    """A trial ended without a score: its process kept dying, or an input is missing."""


@dataclass
class SweepRun:
    """One execution of a sweep file."""

    sweep: Sweep
    subjects: list[Subject]
    session: Session
    address: str | None = None
    """Of a Ray cluster; None: this machine."""
    concurrent: int | None = None
    """Maximum number of parallel trials; None: as many as fit."""
    gpu_share: float = 0.25
    """Fraction of a GPU per trial."""
    storage: str = "journal"
    """Of the studies, as in :func:`open_storage`."""
    cache_logits_bytes: int = 0
    """Disk budget on each machine for teacher logits that several trials need; 0: none are kept."""
    plan_shown: Callable[[Plan], None] = lambda _plan: None

    def __post_init__(self) -> None:
        self.ledger = self.session.ledger
        self.records = SweepRecords(self.ledger.objects)
        self.key = sweep_key(self.subjects)
        self.tracker = Tracker(self.session)
        self.outcome = SweepOutcome(self.subjects)
        self.runs: SweepRuns | None = None
        self.interrupts = Interrupts()
        self.view: TrialView | None = None
        self._waits_for = ""

    def run(self, publish: Publish) -> SweepOutcome:
        """Run everything that is missing, then write the report."""
        outcome = self.outcome
        for subject in self.subjects:
            check_free(self.session.presets, subject.winner_name, self.sweep.name)
        validation = joined([subject.expansion for subject in self.subjects], self.sweep)
        plan = plan_session(validation, self.session, slots=self.concurrent)
        self.plan_shown(plan)
        self.tracker.check()
        with self.interrupts as interrupts, self.ledger.lease(self._lease, f"sweep {self.sweep.name}") as lease:
            self.check_lease = lease.check
            self.session = self.session.with_identity(lease.token, f"sweep {self.sweep.name}")
            self.tracker = Tracker(self.session)  # whose runs have tags of ledger and lease
            try:
                with self._undisturbed():
                    self._studies()
                waiting = any(tuning.next_batch() for tuning in outcome.tunings.values())
                if waiting:
                    check_platform(self.session, self.address, {subject.info.name for subject in self.subjects})
                with self._undisturbed():
                    self._open()
                with ray_cluster(self.address, ray_log(self.session.home)) if waiting else contextlib.nullcontext():
                    interrupts.install_handlers()
                    if self._run_plan(validation, plan):
                        self._tune()
                        self._test()
            except KeyboardInterrupt:
                outcome.interrupted = interrupts.name or "SIGINT"
            except TrialFailed as error:
                outcome.failed.append(("failed", error.message, "trial"))
            except BaseException as error:
                self._close("killed", f"the driver failed: {error}")
                raise
            if outcome.interrupted:
                self._close("killed", f"interrupted by {outcome.interrupted}")
            elif outcome.failed:
                self._close("failed", outcome.failed[0][1])
            self._publish(publish)
        return outcome

    def _publish(self, publish: Publish) -> None:
        """Write the report and close the parent run in any case."""
        try:
            files = self._retry(partial(publish, self.outcome))
            if self.runs is not None:
                self._write(partial(self.runs.attach, files, self._figures()))
        except KeyboardInterrupt:
            self.outcome.interrupted = self.interrupts.name or "SIGINT"
            self._close("killed", f"interrupted by {self.outcome.interrupted}")
        except BaseException as error:
            self._close("failed", f"the report failed: {error}")
            raise
        self._close("done")

    def _figures(self) -> dict[str, float]:
        """The best score of each method, as metrics of the parent run."""
        bests = {label: tuning.best() for label, tuning in self.outcome.tunings.items()}
        scores = {label: best.value for label, best in bests.items() if best is not None}
        return {f"{label}.best_validation_top1_pct": score for label, score in scores.items() if score is not None}

    def existing(self) -> SweepOutcome:
        """The existing results, for a report; runs and tests nothing."""
        with self.ledger.lease(self._lease):
            self._studies()
            for subject in self.subjects:
                tuning = self.outcome.tunings[subject.label]
                best = tuning.best()
                if best is not None and not tuning.next_batch():
                    self.outcome.winners[subject.label] = winner_preset(subject, best, self.sweep.trials)
                    self._read_tests(subject)
        return self.outcome

    @property
    def _lease(self) -> str:
        """Name of the sweep's lease, and of its scratch folder on every machine."""
        return f"sweep-{self.key[:12]}"

    def _studies(self) -> None:
        journal = self.session.home / "sweeps" / f"{self.key[:12]}.journal"
        storage = self._retry(partial(open_storage, self.storage, self.session.tracking_uri, journal))
        for subject in self.subjects:
            self.outcome.tunings[subject.label] = Tuning(self.sweep, subject.study, storage)

    def _open(self) -> None:
        """Open the parent run, and log trials that a killed driver has not logged."""
        shutil.rmtree(scratch_folder(self.session.home, self._lease), ignore_errors=True)
        self.runs = self._write(partial(SweepRuns, self.tracker, self.key))
        saw = {subject.teacher_saw for subject in self.subjects}
        tags = {"tested_on": "validation", "rd3.teacher": "; ".join(sorted(saw))}
        self._write(partial(self.runs.open, self.sweep.name, self.sweep.text, tags))
        for subject in self.subjects:
            for trial in self.outcome.tunings[subject.label].trials():
                self._log(subject, trial)

    def _say(self, reason: str) -> None:
        """Show once what the driver waits for."""
        if reason == self._waits_for:
            return
        self._waits_for = reason
        if self.view is not None:
            self.view.say(f"waiting: {reason}")
        else:
            sys.stderr.write(printable(f"{self.sweep.name}: waiting: {reason}") + "\n")
            sys.stderr.flush()

    def _retry(self, ask: Callable[[], T]) -> T:
        """Call a store that may be unreachable, with retries until a signal."""
        self._waits_for = ""
        try:
            return retry(ask, waiting=self._say, leaving=lambda: bool(self.interrupts.name))
        except Unavailable:
            if self.interrupts.name:
                raise KeyboardInterrupt from None
            raise

    def _write(self, write: Callable[[], T]) -> T:
        """Write to MLflow, with retries; a server that is stopped takes connections and holds each for minutes."""
        slow = f"Writing to MLflow at {without_password(self.session.tracking_uri)} takes more than {SLOW_S:.0f} s."
        timer = threading.Timer(SLOW_S, self._say, [slow])
        timer.daemon = True
        timer.start()
        try:
            return self._retry(write)
        finally:
            timer.cancel()

    def _run_plan(self, expansion: Expansion, plan: Plan) -> bool:
        """Run a plan; False if the sweep cannot continue."""
        outcome = execute(
            expansion, plan, self.session, workers=RayWorkers(self.address), max_concurrent=self.concurrent,
            gpu_share=self.gpu_share, cache_logits_bytes=self.cache_logits_bytes,
        )  # fmt: skip
        self.outcome.interrupted = self.outcome.interrupted or outcome.interrupted
        self.outcome.failed += [(failure.status, failure.reason, failure.label) for failure in outcome.failed]
        return not outcome.exit_code

    def _discard_logits(self, subject: Subject) -> None:
        """Delete cached logits on this machine that only the study of this method needed."""
        if self.cache_logits_bytes:
            with contextlib.suppress(OSError):
                views = [Views.of(one).key for one in subject.evaluations({})]
                LogitsFolder(self.session.roots.home).discard(views)

    def _tune(self) -> None:
        for subject in self.subjects:
            tuning = self.outcome.tunings[subject.label]
            with open_trial_view(f"{self.sweep.name} {subject.label}", tuning, sys.stderr) as view:
                self.view = view
                try:
                    while batch := tuning.next_batch():
                        self._batch(subject, tuning, batch, view)
                finally:
                    self.view = None
            self._discard_logits(subject)

    def _batch(self, subject: Subject, tuning: Tuning, batch: dict[int, dict[str, Any]], view: TrialView) -> None:
        """Run all trials of a batch, then write them to the study together."""
        before = tuning.before(min(batch))
        inputs = {number: self._trial_input(subject, number, point) for number, point in batch.items()}
        began = dict.fromkeys(batch, datetime.now())
        ends: dict[int, Ended] = {}
        with contextlib.closing(self._answers(inputs, before)) as coming:
            for number, answer in coming:
                self.check_lease()
                for key, score in answer.scores.items():
                    self._retry(partial(self.records.keep_score, key, score.model_dump()))
                if answer.ended is None:
                    raise TrialFailed(f"Trial {number} of {subject.label} failed: {answer.failed}")
                ends[number] = answer.ended
                view.one_more()
        with self._undisturbed():
            for number, point in batch.items():
                tuning.tell(number, point, ends[number], began[number])
                self._log(subject, tuning.trials()[number])
        view.batch_ended()

    def _trial_input(self, subject: Subject, number: int, point: dict[str, Any]) -> TrialInput:
        recipes = subject.evaluations(point)
        known = {recipe.key: self._known_score(recipe.key) for recipe in recipes}
        return TrialInput(
            sweep=self._lease,
            study=subject.study,
            number=number,
            evaluations=[canonical(recipe.model_dump(mode="json")) for recipe in recipes],
            pruning=subject.pruning,
            place=self.session,
            given=self._given(recipes),
            known={key: score for key, score in known.items() if score is not None},
            gpu=watched(cluster_devices)[1] > 0,
            cached_logits=subject.cached_logits(recipes, self.cache_logits_bytes),
        )

    def _known_score(self, evaluation: Key) -> Score | None:
        score = self._retry(partial(self.records.score, evaluation))
        try:
            return None if score is None else Score.model_validate(score)
        except ValidationError:
            name = f"{self.ledger.root}/sweeps/scores/{evaluation}.json"
            raise DataCorrupt(f"The score {name} is of another version of RD3.", "delete that file") from None

    def _given(self, recipes: list[EvaluationRecipe]) -> list[dict[str, Any]]:
        """Ledger entries of the set and the teachers."""
        parents = dict.fromkeys(parent for recipe in recipes for parent in recipe.parents())
        entries = [self._retry(partial(self.ledger.find, kind, key)) for kind, key in parents]
        return [entry.model_dump(mode="json") for entry in entries if entry is not None]

    def _answers(
        self, inputs: dict[int, TrialInput], before: list[FrozenTrial]
    ) -> Generator[tuple[int, Answer], None, None]:
        """(number, answer) of each trial as it ends; a signal stops all trials."""
        import ray

        gpus = self.gpu_share if watched(cluster_devices)[1] > 0 else 0.0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(run_sweep_trial)
        shared: ray.ObjectRef[Sequence[FrozenTrial]] = watched(lambda: ray.put(before))
        waiting = list(inputs.items())
        give_up_at: dict[int, float] = {}
        running: dict[Any, int] = {}
        self.interrupts.deferred = True
        try:
            while waiting or running:
                while waiting and len(running) < (self.concurrent or len(inputs)):
                    number, trial = waiting.pop(0)
                    running[watched(partial(task.remote, trial, shared))] = number
                done, _rest = watched(partial(ray.wait, list(running), timeout=_POLL_EVERY_S))
                if self.interrupts.name:
                    raise KeyboardInterrupt
                for reference in done:
                    number = running.pop(reference)
                    answer = watched(partial(_answer, reference))
                    now = time.monotonic()
                    if answer.away and now < give_up_at.setdefault(number, now + GIVE_UP_AFTER_S):
                        self._say(answer.failed)
                        known = inputs[number].known | answer.scores
                        inputs[number] = replace(inputs[number], known=known)  # evaluates what has no score yet
                        waiting.append((number, inputs[number]))
                    else:
                        yield number, answer
        finally:
            self.interrupts.deferred = False
            for reference in [] if dead_service() else running:
                ray.cancel(reference, force=True)

    def _log(self, subject: Subject, trial: FrozenTrial) -> None:
        """Log a finished trial as an MLflow run."""
        recipe = subject.evaluations(trial.params)[0]
        facts: dict[str, str | float] = {
            "method": subject.label, "ipc": self.sweep.ipc, "teacher": self.sweep.teacher,
            "protocol": self.sweep.protocol.name, "trial": trial.number,
        }  # fmt: skip
        stopped = trial.user_attrs.get("stopped")
        run = TrialRun(
            study=subject.study,
            number=trial.number,
            name=f"{subject.label} trial {trial.number}",
            parameters=shown_params(recipe, facts),
            curve=sorted(trial.intermediate_values.items()),
            top1_pct=trial.value if trial.state.name == "COMPLETE" else None,
            tags={
                "rd3.state": trial.state.name,
                "tested_on": "validation",
                **({"rd3.reason": stopped} if stopped else {}),
            },
        )
        assert self.runs is not None, "the parent run is open while trials are logged"
        self._write(partial(self.runs.log, run))

    def _test(self) -> None:
        """Write the winners as protocols, record their tests, and run those that are missing."""
        won: list[tuple[Subject, FrozenTrial]] = []
        for subject in self.subjects:
            best = self.outcome.tunings[subject.label].best()
            if best is None:
                reason = "no trial was completed, so there is no winner"
                self.outcome.failed.append(("failed", reason, subject.label))
                continue
            won.append((subject, best))
            preset = winner_preset(subject, best, self.sweep.trials)
            write_preset(preset, self.session.presets, self.sweep.name)
            self.outcome.winners[subject.label] = preset
        if not won:
            return
        expansion = self._expanded([subject for subject, _best in won])
        if not expansion.blocked:  # otherwise the keys of the tests are unknown
            for subject, best in won:
                self._retry(partial(record, subject, best, self._winner_test(subject), self.records))
        plan = self._retry(partial(plan_session, expansion, self.session, slots=self.concurrent))
        self._run_plan(expansion, plan)
        for subject, _best in won:
            self._read_tests(subject)

    def _winner_test(self, subject: Subject) -> WinnerTest:
        return winner_test(subject, self._expanded([subject]))

    def _expanded(self, won: Sequence[Subject]) -> Expansion:
        """The grid of the tests of these methods, with winners that are not saved yet."""
        presets = [self.outcome.winners[subject.label] for subject in won]
        catalog = Catalog.of(self.session, {preset.name: preset for preset in presets})
        grid = self.sweep.test_grid({subject.label: subject.winner_name for subject in won})
        return self._retry(partial(expand, grid, catalog))

    def _read_tests(self, subject: Subject) -> None:
        test = self._winner_test(subject)
        tests = self._retry(partial(recorded_tests, test, self.records, self.ledger.find))
        self.outcome.tests[subject.label] = tests

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Defer signals to the end of the block, so that no run is left half-written."""
        with self.interrupts.deferring():
            yield
        if self.interrupts.name:
            raise KeyboardInterrupt

    def _close(self, status: str, reason: str = "") -> None:
        """Close the parent run once; the first reason is kept."""
        runs, self.runs = self.runs, None
        if runs is None:
            return
        with self.interrupts.deferring(), contextlib.suppress(Unavailable):
            retry(partial(runs.close, status, reason), give_up_after_s=10.0)


def _answer(reference: Any) -> Answer:
    import ray

    try:
        answer: Answer = ray.get(reference)
        return answer
    except ray.exceptions.RayTaskError as error:  # before the trial began, as on a node with another version of RD3
        return Answer(None, {}, error_line(error))
    except ray.exceptions.RayError as error:
        return Answer(None, {}, f"its process died {RETRIES + 1} times ({type(error).__name__})")


def joined(expansions: list[Expansion], sweep: Sweep) -> Expansion:
    """Merge the expansions of the methods, without duplicates."""
    grid, cells = sweep.validation_grid(sweep.methods), [cell for expansion in expansions for cell in expansion.cells]
    joint: dict[str, Any] = {
        name: {key: value for expansion in expansions for key, value in getattr(expansion, name).items()}
        for name in ("recipes", "blocked", "imports", "labels", "teachers")
    }
    return Expansion(**joint, grid=grid, cells=cells, infos=expansions[0].infos)
