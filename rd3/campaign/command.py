"""``python -m rd3.run``: recipes from the command line.

Exit codes: 0 all recipes are done; 2 invalid input; 3 some recipes failed or are blocked; 4 the time limit was reached
first; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from rd3.campaign.estimates import CANNOT_BE_PLANNED, Estimates
from rd3.campaign.queue import Queue
from rd3.campaign.runner import Runner, Stopped, keep_traceback
from rd3.campaign.scheduler import Scheduler, run_in_process, run_in_workers
from rd3.campaign.view import View, column_counts, named
from rd3.campaign.workers import WorkerPool
from rd3.datasets import Roots, dataset_info, dataset_source
from rd3.device import configure_torch, usable_device
from rd3.errors import BadValue, DataMissing, RD3Error, why
from rd3.evaluation.logits_folder import LogitsFolder
from rd3.evaluation.sharing import disk_budget
from rd3.hardware import hardware
from rd3.planning.cost import shipped_rates
from rd3.planning.sets import largest_sets
from rd3.processes import machine_limits_as_errors
from rd3.recipe import EvaluationRecipe, Key, Recipe, SetRecipe, from_json
from rd3.store import STUDENT, FolderStore
from rd3.upgrade import FORMAT

INTERRUPTED = 130
PLAN = "write recipes with `rd3 plan GRID --recipes DIR`"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return one of the exit codes above."""
    started_at = time.monotonic()
    chosen = _parser().parse_args(arguments)
    try:
        with machine_limits_as_errors():
            usable_device(chosen.device)
            recipes = read_recipes(chosen.recipes)
            if chosen.share:
                return _run_share(recipes, chosen, started_at)
            return _campaign(recipes, chosen, started_at)
    except RD3Error as error:
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        return 3 if error.status in ("diverged", "unsupported") else error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rd3.run",
        description="Run recipes on this machine, parents first; run again to resume.",
        epilog=__doc__.split("\n\n")[1].replace("\n", " "),
    )
    parser.add_argument(
        "recipes",
        type=Path,
        nargs="+",
        help="recipes as JSON, or folders of them, by priority (rd3 plan GRID --recipes DIR writes them)",
    )
    parser.add_argument("--store", type=_path, required=True, help="folder with the parents; results are added to it")
    parser.add_argument("--out", type=_path, required=True, help="scratch folder; an interrupted run resumes from it")
    data, home = os.environ.get("RD3_DATA") or None, os.environ.get("RD3_HOME") or ".rd3"
    parser.add_argument("--data", type=_path, default=data, help="folder with the datasets (default $RD3_DATA)")
    parser.add_argument(
        "--home", type=_path, default=home, help="folder for decoded data (default $RD3_HOME, without it .rd3)"
    )
    processes, threads = partial(_count, of="processes"), partial(_count, of="threads from 1", least=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...; workers share it")
    parser.add_argument(
        "--workers", type=processes, default=1, help="number of processes; 0 or 1: this process only (default)"
    )
    parser.add_argument("--minutes", type=_minutes, help="time limit; recipes that would exceed it are not started")
    parser.add_argument("--threads", type=threads, default=1, help="CPU threads of each worker (default 1)")
    parser.add_argument("--keep-students", action="store_true", help="keep the weights of every evaluation's student")
    parser.add_argument(
        "--cache-logits",
        type=_budget,
        default=0,
        metavar="SIZE",
        help="disk budget, e.g. 20GB, for teacher logits that several evaluations need; deleted at the end",
    )
    parser.add_argument("--share", metavar="K/N", help="generate only share K of N of the blocks of a single set")
    return parser


def _path(text: str) -> Path:
    return Path(text).absolute()


def _count(text: str, of: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {of}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return minutes


def _budget(text: str) -> int:
    try:
        return disk_budget(text)
    except BadValue as error:
        raise argparse.ArgumentTypeError(error.message) from None


def read_recipes(places: Sequence[Path]) -> list[Recipe]:
    """Recipes of files and folders (sorted by file name, without hidden ones), in this order, each once."""
    found: dict[Key, Recipe] = {}
    for place in places:
        paths = sorted(place.glob("[!.]*.json")) if place.is_dir() else [place]
        if not paths or not paths[0].is_file():
            what = f"There is no recipe in {place}." if place.is_dir() else f"There is no file {place}."
            raise RD3Error(what, PLAN)
        for path in paths:
            try:
                text = path.read_bytes()
                recipe = from_json(text)
                if json.loads(text).get("format", 1) < FORMAT and recipe.parents():
                    message = "The recipe is of an older format, so the keys of its parents are out of date."
                    raise BadValue(message, PLAN)
            except BadValue as error:
                raise BadValue(f"{path}: {error.message}", error.fix) from None
            except OSError as error:
                raise DataMissing(f"{path} cannot be read: {error.strerror}.", PLAN) from None
            found.setdefault(recipe.key, recipe)
    return list(found.values())


def _campaign(recipes: list[Recipe], chosen: argparse.Namespace, started_at: float) -> int:
    workers = max(1, chosen.workers)
    scheduler, runner = prepared(recipes, chosen, View(sys.stderr, workers), started_at)
    queue, view = scheduler.queue, scheduler.view
    if not queue.is_open() and not queue.named(("blocked",)):
        view.line("already in the store" if len(recipes) > 1 else f"{named(recipes[0])}: already in the store")
        return 0
    _check_data([queue.recipes[key] for key in queue.named(("waiting",))], runner.roots)
    with _stopping_on_signals(scheduler, raises=workers == 1):
        try:
            if workers == 1:
                run_in_process(scheduler, runner)
            else:
                run_in_workers(WorkerPool(workers, runner), scheduler)
        except KeyboardInterrupt:
            scheduler.abandon_running()
    if scheduler.cache_logits_bytes:
        with contextlib.suppress(OSError):
            LogitsFolder(runner.roots.home).discard(scheduler.unneeded_logits())
    scheduler.check_anything_fits()
    view.summary(queue)
    return exit_code(scheduler)


def _check_data(recipes: Sequence[Recipe], roots: Roots) -> None:
    """Raise :class:`RD3Error` if no folder of the datasets that the recipes need is there; with one, its recipes run.

    Only the folders are looked for: recipes read what is in them, which takes long for large datasets.
    """
    missing = []
    for name in dict.fromkeys(recipe.data.name for recipe in recipes):
        try:
            source = dataset_source(name, roots)
            places = source.places(roots)
            if not places or any(place.is_dir() for place in places):
                return
            source.survey(roots)
        except RD3Error as error:
            missing.append(error)
    if missing:
        raise missing[0]


def prepared(
    recipes: Sequence[Recipe], chosen: argparse.Namespace, view: View, started_at: float
) -> tuple[Scheduler, Runner]:
    """The scheduler and the runner of a campaign; nothing runs yet."""
    store, roots = FolderStore(chosen.store), Roots(chosen.data, chosen.home)
    info_of = partial(dataset_info, roots=roots)
    try:
        larger = largest_sets(list(recipes), info_of)
    except CANNOT_BE_PLANNED:  # reported when the recipe runs
        larger = {}
    order = {recipe.key: place for place, recipe in enumerate(recipes)}
    # A smaller set waits for the larger one that it is copied from, unless the user put it first.
    earlier = {small: large for small, large in larger.items() if order[large] < order[small]}
    pending = [recipe for recipe in recipes if store.find(recipe.kind, recipe.key) is None]
    # They run again if the store has them without their student: a recipe that is to run needs it.
    with_students = _kept(recipes, pending, chosen.keep_students)

    def there(kind: str, key: Key) -> bool:
        entry = store.find(kind, key)
        return entry is not None and (key not in with_students or STUDENT in entry.files)

    queue = Queue(recipes, there, earlier)

    kind = "cpu" if chosen.device == "cpu" else "cuda"
    rates = shipped_rates(kind, hardware(kind).bf16)
    estimates = Estimates(queue.recipes, store.find, info_of, rates)
    runner = Runner(
        store=store.root,
        roots=roots,
        out=chosen.out,
        device=chosen.device,
        threads=chosen.threads,
        shared_machine=True if view.workers > 1 else None,  # with one worker, what else runs is unknown
        larger=larger,
        kept=_kept(recipes, recipes, chosen.keep_students),
    )
    scheduler = Scheduler(
        queue,
        estimates,
        view,
        seconds=60 * chosen.minutes if chosen.minutes else None,
        started_at=started_at,
        side_by_side=chosen.device != "cpu",
        cache_logits_bytes=chosen.cache_logits,
    )
    return scheduler, runner


def _kept(recipes: Sequence[Recipe], users: Sequence[Recipe], every: bool) -> frozenset[Key]:
    """Evaluations that keep their students: those that ``users`` are made from, or all."""
    needed = {key for recipe in users for _kind, key in recipe.parents()}
    evaluations = (recipe.key for recipe in recipes if isinstance(recipe, EvaluationRecipe))
    return frozenset(key for key in evaluations if every or key in needed)


def exit_code(scheduler: Scheduler) -> int:
    if scheduler.interrupted:
        return INTERRUPTED
    counts, names = column_counts(scheduler.queue), set(scheduler.queue.recipes)
    if counts["failed"] or counts["blocked"]:
        # The only recipe requested failed for a reason that the user can fix: invalid input.
        return 2 if len(names) == 1 and (counts["blocked"] or names == scheduler.mistakes) else 3
    return 4 if counts["unfinished"] or counts["not started"] else 0


@contextlib.contextmanager
def _stopping_on_signals(scheduler: Scheduler, raises: bool) -> Iterator[None]:
    """Inside ``with``, Ctrl-C or SIGTERM stops a campaign gracefully; a second one exits at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if scheduler.interrupted:
            os._exit(INTERRUPTED)
        scheduler.interrupted = True
        if raises:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_share(recipes: Sequence[Recipe], chosen: argparse.Namespace, started_at: float) -> int:
    from rd3.perform import perform_blocks

    recipe = recipes[0]
    blocks = _share(chosen.share, recipe, len(recipes))
    if chosen.workers > 1 or chosen.keep_students or chosen.cache_logits:
        raise BadValue(
            "--share generates blocks of one set in this process: it has no use for --workers, --keep-students and "
            "--cache-logits.",
            "leave them out, and start one process for each share",
        )
    assert isinstance(recipe, SetRecipe)
    store, out, view = FolderStore(chosen.store), chosen.out / recipe.key, View(sys.stderr, 1)
    if store.find(recipe.kind, recipe.key) is not None:
        view.line(f"{named(recipe)}: already in the store")
        return 0
    stops_at = started_at + 60 * chosen.minutes if chosen.minutes else math.inf

    def progress(fraction: float, note: str) -> None:
        if time.monotonic() >= stops_at:
            raise Stopped
        view.progress(recipe, fraction, note, f"share {chosen.share}")

    roots = Roots(chosen.data, chosen.home)
    configure_torch(chosen.threads)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        perform_blocks(recipe, store, roots, out, blocks, device=chosen.device, progress=progress)
    except (Stopped, KeyboardInterrupt) as end:
        view.line(f"share {chosen.share} is unfinished; run again to resume")
        return 4 if isinstance(end, Stopped) else INTERRUPTED
    except RD3Error:
        raise
    except Exception as error:
        keep_traceback(error, out)
        view.line(f"share {chosen.share} {': '.join(why(error))}")
        return 3
    finally:
        signal.signal(signal.SIGTERM, before)
    view.line(f"share {chosen.share} is in {out / 'result'}")
    return 0


def _share(text: str, recipe: Recipe, count: int) -> tuple[int, int]:
    """``2/4`` as (first block, step)."""
    number, _slash, shares = text.partition("/")
    if count > 1 or not isinstance(recipe, SetRecipe) or not number.isdecimal() or not shares.isdecimal():
        what = f"{count} recipes" if count > 1 else f"{'an' if recipe.kind[0] in 'aeiou' else 'a'} {recipe.kind}"
        raise BadValue(f"--share {text} of {what}: expected K/N and a single set.", "use e.g. --share 1/4")
    if not 1 <= int(number) <= int(shares):
        raise BadValue(f"--share {text}: K must be between 1 and N.", "use e.g. --share 1/4")
    return int(number) - 1, int(shares)
