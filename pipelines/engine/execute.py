"""Execute a plan: takes the driver's lease, opens the grid's run, runs trials on Ray, and updates the ledger.

The driver may be killed at any moment.  Running the command again resumes: results in the ledger are reused, runs left
in state RUNNING are closed, and an unfinished recipe is resumed from its work folder.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipelines.cluster.nodes import check_platform
from pipelines.cluster.ray import cluster_demands, cluster_devices, ray_cluster
from pipelines.engine import trial_log
from pipelines.engine.attempt import in_use
from pipelines.engine.driver import Driver, Leave
from pipelines.engine.interrupts import EXIT_CODE, Interrupts
from pipelines.engine.job import Job, work_folder
from pipelines.engine.progress import Eta, View, open_view
from pipelines.engine.shards import Share, discard, share_out
from pipelines.grid.queue import Closed, Demand, Queued, RecipeQueue
from pipelines.settings import Session
from rd3.errors import RD3Error, Unavailable
from rd3.recipe import KINDS, Key, Recipe, TeacherRecipe, read_recipe
from rd3.store import Entry
from rd3.values import canonical
from tracking.ledger.ledger import Ledger
from tracking.ledger.retry import retry
from tracking.runs.fields import parent_facts
from tracking.runs.runs import Tracker
from tracking.store import HAND

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion
    from pipelines.grid.plan import Plan

T = TypeVar("T")

_UNKNOWN = dict.fromkeys(KINDS, Demand(1.0))
_WORKERS_GONE_S = 15.0
_CLOSE_WITHIN_S = 10.0
"""How long an interrupted driver waits for an unreachable tracking server."""
_FINISHED = 256
"""Maximum number of finished recipes whose scratch folders a worker deletes."""


class Failure(NamedTuple):
    """A recipe without a result after the run."""

    label: str
    key: Key
    status: str
    reason: str


@dataclass
class Outcome:
    """The outcome of a run."""

    done: list[Key] = field(default_factory=list)
    reused: list[Key] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    interrupted: str = ""
    """Name of the signal that stopped the run."""

    @property
    def exit_code(self) -> int:
        """0: all done; 3: some recipes failed or are blocked; 130: interrupted."""
        return EXIT_CODE if self.interrupted else 3 if self.failed else 0


def execute(
    expansion: Expansion,
    plan: Plan,
    session: Session,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    gpu_share: float = 0.25,
    shares: int = 1,
    view: bool = True,
    experiment: str | None = None,
) -> Outcome:
    """Run the recipes of a plan and return the outcome.

    ``address``: a Ray cluster (default: start Ray on this machine).  ``max_concurrent``: maximum number of parallel
    trials, independent of the cluster's current size (default: as many as fit).  ``gpu_share``: fraction of a GPU per
    evaluation trial.  ``shares``: number of trials that generate one set together, unless ``timing: exclusive``.
    """
    if not plan.keys("run"):
        return _outcome(expansion, _queue(expansion, plan, set(), _UNKNOWN))
    tracker = Tracker(session)
    check_platform(session, address, {recipe.data.name for recipe in expansion.recipes.values()})
    ledger = session.ledger
    with Interrupts() as interrupts, ledger.lease() as lease:
        run = _Run(
            expansion, plan, session, ledger, tracker, interrupts, lease.check, keep_unfinished=address is not None
        )
        try:
            there = run.tidy()
            if there.issuperset(plan.keys("run")):
                return _outcome(expansion, _queue(expansion, plan, there, _UNKNOWN))
            run.open_runs(experiment or HAND)
            with ray_cluster(address):
                interrupts.arm()
                exclusive = expansion.grid is not None and expansion.grid.timing == "exclusive"
                demands = cluster_demands(exclusive=exclusive, gpu_share=gpu_share)
                queue = run.queue = _queue(expansion, plan, there, demands, 1 if exclusive else shares)
                with run.open_view(max_concurrent, wanted=view) as shown:
                    run.work(shown, max_concurrent)
        except (Leave, KeyboardInterrupt):
            if run.fatal is not None:
                run.abandon(f"the driver failed: {run.fatal}")
                raise run.fatal from None
            run.abandon(f"interrupted by {interrupts.name or 'Ctrl-C'}")
            outcome = _outcome(expansion, run.queue)
            outcome.interrupted = interrupts.name or "SIGINT"
            return outcome
        except BaseException as error:
            run.abandon(f"the driver failed: {error}")
            raise
        outcome = _outcome(expansion, queue)
        run.close(ok=not outcome.failed)
        return outcome


def _queue(
    expansion: Expansion, plan: Plan, there: set[Key], demands: dict[str, Demand], shares: int = 1
) -> RecipeQueue:
    """The plan as a queue; ``there``: results added to the ledger since; ``shares``: number of trials per set."""
    items = {item.key: item for item in plan.items if item.key is not None}
    recipes: dict[Key, Queued] = {key: recipe for key, recipe in expansion.recipes.items() if key in items}
    running = [
        expansion.recipes[key] for key, item in items.items() if item.status == "run" and key not in expansion.within
    ]
    shared = share_out(running, shares, expansion.infos.get) if shares > 1 else {}
    recipes |= {share.key: share for each in shared.values() for share in each}
    costs_s = {key: item.cost_s for key, item in items.items()}
    costs_s |= {share.key: costs_s[key] / len(each) for key, each in shared.items() for share in each}
    costs_s |= dict.fromkeys(shared, 0.0)  # only the shares remain to be assembled
    return RecipeQueue(
        recipes,
        reused=[key for key, item in items.items() if item.status == "reuse" or key in there],
        closed={
            key: Closed("blocked", item.reason)
            for key, item in items.items()
            if item.status == "blocked" and key not in there
        },
        demands=demands,
        after={key: [larger] for key, larger in expansion.within.items()}
        | {key: [share.key for share in each] for key, each in shared.items()},
        costs_s=costs_s,
    )


def _outcome(expansion: Expansion, queue: RecipeQueue | None) -> Outcome:
    if queue is None:
        return Outcome()
    recipes = [key for key in queue.recipes if key in expansion.recipes]
    failed = [Failure(expansion.label(key), key, *queue.closed[key]) for key in recipes if key in queue.closed]
    return Outcome(
        done=[key for key in recipes if key in queue.done],
        reused=[key for key in recipes if key in queue.reused],
        failed=failed,
    )


@dataclass
class _Run:
    """One execution, from lease to close."""

    expansion: Expansion
    plan: Plan
    session: Session
    ledger: Ledger
    tracker: Tracker
    interrupts: Interrupts
    check_lease: Callable[[], Any]
    keep_unfinished: bool = False
    """Machines may disappear, so unfinished work is uploaded."""
    experiment_id: str = ""
    grid_run_id: str | None = None
    queue: RecipeQueue | None = None
    fatal: BaseException | None = None
    say: Callable[[str], None] = lambda _note: None
    """Shows what the driver waits for."""
    known: dict[Key, Entry] = field(default_factory=dict)
    """Entries that have been read or written."""
    forgotten: set[Key] = field(default_factory=set)
    """Keys of missing or damaged results that will be regenerated."""
    finished: list[str] = field(default_factory=list)
    """``kind/key`` of the entries that this run has added to the ledger."""

    @property
    def name(self) -> str:
        return self.expansion.grid.name if self.expansion.grid else "rd3"

    @property
    def open_queue(self) -> RecipeQueue:
        """The queue, which is there as soon as Ray is."""
        assert self.queue is not None
        return self.queue

    def tidy(self) -> set[Key]:
        """Remove damaged entries from the ledger and scratch of finished recipes; returns keys done since the plan."""
        for kind, key in self.plan.stale:
            self.forget(kind, key)
        wanted = set(self.plan.keys("run")) | set(self.plan.keys("blocked"))
        kinds = {self.expansion.recipes[key].kind for key in wanted}
        there = wanted & set().union(*(self.ledger.keys(kind) for kind in kinds))
        for folder in (self.session.home / "work").glob("*/*"):
            if folder.name in there or self.plan.status_of(folder.name) == "reuse":
                shutil.rmtree(folder, ignore_errors=True)
        return there

    def open_runs(self, experiment: str) -> None:
        """Open the experiment and the grid's own run, and close runs of dead drivers."""
        self.experiment_id = self.tracker.experiment(experiment)
        self.tracker.close_dead_runs(self.experiment_id, "its driver died")
        grid = self.expansion.grid
        if grid is not None:
            self.grid_run_id = self.tracker.grid_run(self.experiment_id, grid.name, grid_yaml=grid.text)

    def open_view(self, max_concurrent: int | None, *, wanted: bool) -> View:
        eta = self.eta(max_concurrent)
        return open_view(self.name, self.open_queue, eta, label=self.label, wanted=wanted, out=sys.stderr)

    def eta(self, max_concurrent: int | None) -> Eta:
        """The ETA, by parallel trials if their number is given, else by GPUs, else by cores."""
        costs_s, networks = self.open_queue.costs_s, self.networks()
        if max_concurrent:
            return Eta(costs_s, max_concurrent, networks=networks)
        cpus, gpus = cluster_devices()
        if gpus:
            return Eta(costs_s, gpus, networks=networks, takes=lambda demand: demand.gpus)
        return Eta(costs_s, cpus, networks=networks, takes=lambda demand: demand.cpus)

    def networks(self) -> dict[Key, str]:
        """The network that each recipe trains or uses: recipes of one kind and network take about equally long."""
        recipes = self.expansion.recipes

        def of(recipe: Recipe) -> str:
            parents = (recipes.get(key) for _kind, key in recipe.parents())
            teacher = next((parent for parent in parents if isinstance(parent, TeacherRecipe)), None)
            own = getattr(recipe, "student", None) or getattr(recipe, "network", None)
            return own or (teacher.network if teacher is not None else "")

        return {key: of(recipe) for key, recipe in recipes.items()}

    def label(self, key: Key) -> str:
        """Display name of a recipe, or of a share of one."""
        return self.expansion.label(key) if key in self.expansion.recipes else self.open_queue.recipes[key].label()

    def work(self, view: View, max_concurrent: int | None) -> None:
        """Run the queue on Ray; signals stop it only between two steps."""
        from pipelines.engine.tune import work_off

        self.say = view.show_note
        driver = Driver(
            self.open_queue,
            view,
            job=self.job,
            keep=self.keep,
            forget=self.forget,
            devices=cluster_devices,
            max_concurrent=max_concurrent,
            stopping=lambda: bool(self.interrupts.name),
        )
        self.interrupts.deferred = True
        try:
            work_off(driver, self.session.home)
        finally:
            self.interrupts.deferred = False
            self.fatal = driver.fatal

    def job(self, asked: Queued, demand: Demand) -> Job:
        in_shares = bool(self.open_queue.after.get(asked.key)) and asked.key not in self.expansion.within
        blocks = asked.blocks if isinstance(asked, Share) else None
        recipe = asked.of if isinstance(asked, Share) else self.expansion.recipes[asked.key]
        larger = self.expansion.within.get(recipe.key)
        parents = [*recipe.parents(), *([("set", larger)] if larger else [])]
        return Job(
            kind=recipe.kind,
            key=recipe.key,
            recipe=canonical(recipe.model_dump(mode="json")),
            facts=self.facts(recipe),
            place=self.session,
            experiment_id=self.experiment_id,
            parent_run_id=self.grid_run_id,
            gpu=demand.gpus > 0,
            alone=demand.whole,
            larger=larger,
            blocks=blocks,
            in_shares=in_shares,
            given=[entry.model_dump(mode="json") for entry in self.entries(parents).values()],
            keep_unfinished=self.keep_unfinished,
            ignore_earlier=recipe.key in self.forgotten,
            finished=self.finished[-_FINISHED:],
        )

    def entries(self, wanted: Iterable[tuple[str, Key]]) -> dict[Key, Entry]:
        """Ledger entries of these and of all their ancestors."""
        found: dict[Key, Entry] = {}
        for kind, key in wanted:
            if key not in self.known:
                entry = self.retry(partial(self.ledger.find, kind, key))
                if entry is None:
                    continue
                self.known[key] = entry
            parents = read_recipe(self.known[key].recipe).parents()
            found |= self.entries(parents) | {key: self.known[key]}
        return found

    def retry(self, ask: Callable[[], T]) -> T:
        """Call a store with retries while it is unreachable, and show the waiting; a signal ends it."""
        return retry(ask, waiting=self.say, leaving=lambda: bool(self.interrupts.name))

    def as_holder(self, write: Callable[[], T]) -> T:
        """Write to the ledger, if the lease is still ours."""
        self.check_lease()
        return write()

    def publish(self) -> None:
        """Attach tables and charts of the grid to its run."""
        from tracking.report.publish import publish_tables

        run_id, cells = self.grid_run_id, self.expansion.cells
        if run_id is not None and cells:
            name = self.expansion.source_grid.name
            with tempfile.TemporaryDirectory() as folder:
                publish_tables(self.tracker, run_id, name, cells, self.ledger.find, Path(folder))

    def facts(self, recipe: Recipe) -> dict[str, Any]:
        """Parameters to filter runs by: the grid's names, and facts of the parents."""
        known = self.entries(recipe.parents())
        return parent_facts(recipe, lambda _kind, key: known.get(key)) | self.expansion.facts(recipe.key)

    def keep(self, entry: dict[str, Any]) -> None:
        """Add a finished recipe to the ledger, then delete its scratch."""
        kept = self.retry(partial(self.as_holder, partial(self.ledger.mark, Entry.model_validate(entry))))
        self.known[kept.key] = kept
        self.forgotten.discard(kept.key)
        self.finished.append(f"{kept.kind}/{kept.key}")
        shutil.rmtree(work_folder(self.session.home, kept.kind, kept.key), ignore_errors=True)
        if self.queue is not None and self.queue.after.get(kept.key):
            self.retry(partial(discard, self.ledger.objects, kept.key))

    def forget(self, kind: str, key: Key) -> None:
        """Remove a result with a missing or damaged artifact from the ledger."""
        self.retry(partial(self.as_holder, partial(self.ledger.forget, kind, key)))
        self.known.pop(key, None)
        self.finished = [name for name in self.finished if name != f"{kind}/{key}"]
        self.forgotten.add(key)
        shutil.rmtree(work_folder(self.session.home, kind, key), ignore_errors=True)
        trial_log.append(self.session.home, "forgotten", kind, key)

    def abandon(self, reason: str) -> None:
        """Close all runs of this driver.  Workers end with the cluster; their locks show when all have ended."""
        running = {key: self.queue.recipes[key].kind for key in self.queue.running} if self.queue else {}
        folders = [work_folder(self.session.home, kind, key) for key, kind in running.items()]
        deadline = time.monotonic() + _WORKERS_GONE_S
        while any(in_use(folder) for folder in folders) and time.monotonic() < deadline:
            time.sleep(0.1)
        for key, kind in running.items():
            trial_log.append(self.session.home, "fail", kind, key, status="killed", reason=reason)
        if self.experiment_id:
            with contextlib.suppress(Unavailable):  # the next run closes them
                retry(
                    partial(self.tracker.close_dead_runs, self.experiment_id, reason), give_up_after_s=_CLOSE_WITHIN_S
                )

    def close(self, *, ok: bool) -> None:
        """Close the grid's run, and the runs of workers that died."""
        if self.grid_run_id is not None:
            self.retry(partial(self.tracker.close_grid, self.grid_run_id, ok))
        ends = dict(self.queue.closed) if self.queue else {}
        self.retry(partial(self.tracker.close_dead_runs, self.experiment_id, "its process died", ends))
        if self.grid_run_id is not None:
            with contextlib.suppress(RD3Error):  # `rd3 report` publishes them again
                self.retry(self.publish)
