"""Execute a plan: takes the driver's lease, opens the grid's run, runs trials on Ray, and closes what it opened.

The driver may be killed at any moment.  Running the command again resumes: results in the ledger are reused, runs left
in state RUNNING are closed, and an unfinished recipe is resumed from its work folder.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.engine import trial_log
from pipelines.engine.bookkeeping import Bookkeeping
from pipelines.engine.driver import Driver, StopDriver
from pipelines.engine.eta import eta_of
from pipelines.engine.grid_runs import GridRuns
from pipelines.engine.interrupts import INTERRUPTED, Interrupts
from pipelines.engine.job import work_folder
from pipelines.engine.job_builder import JobBuilder
from pipelines.engine.plan_queue import plan_queue
from pipelines.engine.progress import open_view
from pipelines.engine.workers import RayWorkers, Workers
from pipelines.grid.queue import RecipeQueue
from pipelines.settings import Session
from rd3.locks import is_locked
from rd3.recipe import Key
from tracking.store import EXPERIMENT

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion
    from pipelines.grid.plan import Plan

_WORKERS_GONE_S = 15.0
"""How long a driver that ends early waits for its workers to end."""


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
        return INTERRUPTED if self.interrupted else 3 if self.failed else 0


def execute(
    expansion: Expansion,
    plan: Plan,
    session: Session,
    *,
    workers: Workers | None = None,
    max_concurrent: int | None = None,
    gpu_share: float = 0.25,
    shares: int = 1,
    view: bool = True,
    cache_logits_bytes: int = 0,
) -> Outcome:
    """Run the recipes of a plan and return the outcome.

    ``workers``: what runs trials (default: Ray on this machine).  ``max_concurrent``: maximum number of parallel
    trials, independent of the cluster's current size (default: as many as fit).  ``gpu_share``: fraction of a GPU per
    evaluation trial.  ``shares``: number of trials that generate one set together, unless ``timing: exclusive``.
    ``view``: whether progress is shown on stderr.  ``cache_logits_bytes``: disk budget on each machine for teacher
    logits that several evaluations need; 0: none.
    """
    if not plan.keys("run"):
        return _outcome(expansion, plan_queue(expansion, plan))
    name, work = "rd3", "single recipes"
    if expansion.grid is not None:
        name, work = expansion.grid.name, f"grid {expansion.grid.name}"
    driver_lease = session.ledger.lease(work=work)
    driver_lease.refuse_if_held()
    workers = workers or RayWorkers()
    workers.check(session, {recipe.data.name for recipe in expansion.recipes.values()})
    with Interrupts() as interrupts, driver_lease as lease:
        session = session.with_identity(lease.token, work)
        books = Bookkeeping(session, lease, interrupts)
        runs = GridRuns(expansion, books)
        driver: Driver | None = None
        try:
            finished = _clean_up(expansion, plan, books)
            if finished.issuperset(plan.keys("run")):
                return _outcome(expansion, plan_queue(expansion, plan, finished))
            runs.open(EXPERIMENT)
            with workers.open(session.home):
                interrupts.install_handlers()
                exclusive = expansion.grid is not None and expansion.grid.timing == "exclusive"
                demands = workers.demands(exclusive=exclusive, gpu_share=gpu_share)
                queue = plan_queue(expansion, plan, finished, demands, 1 if exclusive else shares)
                jobs = JobBuilder(expansion, queue, books, runs, keep_unfinished=workers.machines_may_vanish)
                eta = eta_of(expansion, queue, workers, max_concurrent)
                with open_view(name, queue, eta, expansion.labels, sys.stderr, wanted=view) as shown:
                    books.view = shown
                    driver = Driver(
                        queue,
                        shown,
                        jobs,
                        books,
                        workers,
                        interrupts,
                        max_concurrent=max_concurrent,
                        cache_logits_bytes=cache_logits_bytes,
                    )
                    workers.run_queue(driver, session.home, interrupts)
                    if driver.leaving and not queue.finished:
                        raise StopDriver
        except (StopDriver, KeyboardInterrupt):
            if driver is not None and driver.fatal is not None:
                _abandon(driver, runs, session.home, f"the driver failed: {driver.fatal}")
                raise driver.fatal from None
            _abandon(driver, runs, session.home, f"interrupted by {interrupts.name or 'Ctrl-C'}")
            outcome = Outcome() if driver is None else _outcome(expansion, driver.queue)
            outcome.interrupted = interrupts.name or "SIGINT"
            return outcome
        except BaseException as error:
            _abandon(driver, runs, session.home, f"the driver failed: {error}")
            raise
        finally:
            if driver is not None and cache_logits_bytes:
                driver.discard_logits(session.roots.home)
        outcome = _outcome(expansion, queue)
        runs.close(ok=not outcome.failed, unsuccessful=queue.unsuccessful)
        return outcome


def _clean_up(expansion: Expansion, plan: Plan, books: Bookkeeping) -> set[Key]:
    """Remove damaged entries from the ledger and scratch of finished recipes; returns keys done since the plan."""
    for kind, key in plan.stale:
        if books.damaged(kind, key):
            books.forget(kind, key)
    wanted = set(plan.keys("run")) | set(plan.keys("blocked"))
    kinds = {expansion.recipes[key].kind for key in wanted}
    # those that run again for the weights of their student have a result all along
    finished = wanted & set().union(*(books.ledger.keys(kind) for kind in kinds)) - plan.rerun_for_weights
    with_result = finished.union(plan.keys("reuse"))
    for folder in (books.home / "work").glob("*/*"):  # work/<kind>/<key>, or <key>-1of2 for a share of a set
        if folder.name.partition("-")[0] in with_result:
            shutil.rmtree(folder, ignore_errors=True)
    return finished


def _abandon(driver: Driver | None, runs: GridRuns, home: Path, reason: str) -> None:
    """Close all runs of this driver.  Workers end with the cluster: the locks of their folders are then free."""
    running = {} if driver is None else {key: driver.queue.recipes[key].kind for key in driver.queue.running}
    locks = [work_folder(home, kind, key) / "lock" for key, kind in running.items()]
    deadline = time.monotonic() + _WORKERS_GONE_S
    while any(map(is_locked, locks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for key, kind in running.items():
        trial_log.append(home, "fail", kind, key, status="killed", reason=reason)
    runs.abandon(reason)


def _outcome(expansion: Expansion, queue: RecipeQueue) -> Outcome:
    recipes = [key for key in queue.recipes if key in expansion.recipes]
    failed = [
        Failure(expansion.label(key), key, *queue.unsuccessful[key]) for key in recipes if key in queue.unsuccessful
    ]
    return Outcome(
        done=[key for key in recipes if queue.state(key) == "done"],
        reused=[key for key in recipes if queue.state(key) == "reused"],
        failed=failed,
    )
