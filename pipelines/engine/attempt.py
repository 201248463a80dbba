"""One attempt at the recipes of a trial: each is run and tracked, and ends by itself.  Never writes the ledger.

A trial may die at any moment and be restarted, here or after the driver's death.  So each recipe has its own work
folder, under a lock that an orphan of a killed driver still holds; work of an earlier attempt is resumed, a finished
attempt is only reported, and the MLflow run is found again by the recipe's key.

Several recipes are evaluations that are trained together, as a pack.  :func:`_story` takes a single recipe from start
to end and yields once, where the recipe is run together with the others.  A trial of one recipe is a pack of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.engine import trial_log
from pipelines.engine.job import Job, TrialEnd, given_store
from pipelines.engine.shards import collect, deliver
from pipelines.transfer.datasets import ensure_data
from rd3.errors import DataCorrupt, DataMissing, RD3Error, Unavailable, ends_the_process, is_device_error, why
from rd3.perform import Part, perform, perform_blocks, perform_pack
from rd3.recipe import EvaluationRecipe, Recipe, SetRecipe, from_json
from rd3.store import Entry, ReadableStore, check_files, write_atomically
from tracking.ledger.object_store import open_objects
from tracking.ledger.retry import retry
from tracking.place import Place
from tracking.runs import artifacts
from tracking.runs.fields import note

if TYPE_CHECKING:
    from tracking.runs.runs import OpenRun, Tracker
    from tracking.runs.unfinished import UnfinishedWork

T = TypeVar("T")

ORPHAN_WAIT_S = 120.0
"""How long a new attempt waits for an older process to release the recipe's folder."""

Progress = Callable[[float, str], None]
Story = Generator[Part, Entry | None, TrialEnd]
"""Yields the part to run, is sent its outcome, and returns how the recipe ended."""


class Unfit(Exception):
    """This process must not run another recipe: its device failed, or had too little memory for the pack."""


def attempt(
    jobs: Sequence[Job], progress: Callable[[int, float, str], None], ended: Callable[[int, TrialEnd], None]
) -> None:
    """Run the recipes of a trial, and call ``ended`` once for each, with its result or the reason of its failure.

    ``progress`` and ``ended`` receive the index of the job in ``jobs``.  Raises :class:`Unfit`; recipes that have not
    ended then can be restarted, as after the death of the process.
    """
    store = given_store(jobs)
    stories = [_story(job, store, partial(progress, number)) for number, job in enumerate(jobs)]
    with contextlib.ExitStack() as left:
        for story in stories:
            left.callback(story.close)
        parts: dict[int, Part] = {}
        for number, story in enumerate(stories):
            part = _go_on(partial(next, story), partial(ended, number))
            if part is not None:
                parts[number] = part
        outcomes = _run_together([jobs[number] for number in parts], list(parts.values()), store) if parts else []
        for number, outcome in zip(parts, outcomes, strict=True):
            story = stories[number]
            if isinstance(outcome, Exception):
                step = partial(story.throw, outcome)
            else:
                step = partial(story.send, outcome)
            _go_on(step, partial(ended, number))


def _go_on(step: Callable[[], Part], ended: Callable[[TrialEnd], None]) -> Part | None:
    """The next part that a story wants to run; None if it has ended, which is reported."""
    try:
        return step()
    except StopIteration as stop:
        ended(stop.value)
    return None


def _run_together(
    jobs: Sequence[Job], parts: Sequence[Part], store: ReadableStore
) -> Sequence[Entry | Exception | None]:
    """The entry of each, written to its folder before any upload, or the error that ended it."""
    try:
        outcomes = _perform(jobs, parts, store)
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, Entry):
                write_atomically(part.out / "made.json", outcome.model_dump_json())
        return outcomes
    except Exception as error:
        if is_device_error(error) or (len(jobs) > 1 and ends_the_process(error)):
            raise Unfit(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        if len(jobs) == 1:
            return [error]
    # A failure of one, such as a contradiction in its protocol, must not end the others.  Out here the error no longer
    # keeps what the pack had in memory.
    return [one for job, part in zip(jobs, parts, strict=True) for one in _run_together([job], [part], store)]


def _perform(jobs: Sequence[Job], parts: Sequence[Part], store: ReadableStore) -> Sequence[Entry | Exception | None]:
    """Run a pack, one recipe of any kind, or a share of a set, which has no entry."""
    job, part = jobs[0], parts[0]
    device = "cuda" if job.gpu else "cpu"
    if len(parts) > 1:
        return perform_pack(parts, store, job.place.roots, device=device)
    recipe, roots, out, progress = part.recipe, job.place.roots, part.out, part.progress
    if job.blocks is not None:
        assert isinstance(recipe, SetRecipe), "only sets are generated in shares"
        perform_blocks(recipe, store, roots, out, job.blocks, device=device, progress=progress)
        return [None]
    entry = perform(
        recipe,
        store,
        roots,
        out,
        device=device,
        shared_machine=not job.alone,
        larger=job.larger,
        progress=progress,
    )
    return [entry]


def _story(job: Job, store: ReadableStore, progress: Progress) -> Story:
    """One recipe, from the lock on its folder to its end."""
    recipe = from_json(job.recipe)
    try:
        with _alone_in(job.folder, progress):
            if job.blocks is not None:
                yield from _share(job, job.blocks, recipe, store, progress)
                return TrialEnd("done")
            entry = yield from _entry(job, recipe, store, progress)
            return TrialEnd("done", entry=entry.model_dump(mode="json"))
    except _BrokenParents as error:
        end = TrialEnd(error.status, str(error), broken=error.parents)
    except Exception as error:  # any error ends this recipe only, and the others continue
        end = TrialEnd(*why(error))
    if job.blocks is None:
        trial_log.append(job.home, "fail", job.kind, job.key, status=end.status, reason=end.reason)
    return end


def _share(
    job: Job, blocks: tuple[int, int], recipe: Any, store: ReadableStore, progress: Progress
) -> Generator[Part, Entry | None, None]:
    """Generate some blocks of a set, and upload them for the trial that assembles the set."""
    result, objects = job.folder / "result", open_objects(job.place.artifacts)
    _gather(job, recipe, store, progress)
    _retry(lambda: collect(objects, job.key, result, blocks), progress)
    yield Part(recipe, job.folder, progress)
    _retry(lambda: deliver(objects, job.key, result), progress, 1.0)
    shutil.rmtree(result, ignore_errors=True)


def _entry(job: Job, recipe: Any, store: ReadableStore, progress: Progress) -> Generator[Part, Entry, Entry]:
    """The finished entry, of an earlier attempt or of this one."""
    home, finished = job.home, job.folder / "entry.json"
    if job.ignore_earlier:
        finished.unlink(missing_ok=True)
        (job.folder / "made.json").unlink(missing_ok=True)
    entry = _finished(job, finished, progress)
    if entry is None:
        return (yield from _tracked(job, recipe, store, progress))
    if not trial_log.is_done(home, job.key):
        trial_log.append(home, "done", job.kind, job.key, attempt=trial_log.attempts(home, job.key))
    return entry


def _finished(job: Job, path: Path, progress: Progress) -> Entry | None:
    """The entry finished by an earlier attempt before the driver died, if its files still exist."""
    if not path.is_file():
        return None
    entry = Entry.model_validate_json(path.read_bytes())
    if _retry(partial(artifacts.exists, entry, job.place.tracking_uri), progress, 1.0):
        return entry
    trial_log.append(job.home, "forgotten", job.kind, job.key)
    path.unlink()
    return None


def _tracked(job: Job, recipe: Any, store: ReadableStore, progress: Progress) -> Generator[Part, Entry, Entry]:
    """One tracked attempt; the finished entry is kept in the folder, in case the driver dies."""
    home = job.home
    number = trial_log.attempts(home, job.key) + 1
    trial_log.append(home, "start", job.kind, job.key, attempt=number, label=recipe.label())
    _clean_up(job)
    run = _Run(job, recipe, number, progress)
    try:
        unfinished = run.begin()
        with _uploaded_on_exit(unfinished):
            entry = yield from _generate(job, recipe, store, progress, unfinished)
        trial_log.append(home, "made", job.kind, job.key, attempt=number)
        entry = run.finish(entry, set_input=_set_input(recipe, store), note=note(recipe, store.find))
        if unfinished is not None:
            unfinished.discard()
    except Exception as error:
        run.fail(error)
        raise
    write_atomically(job.folder / "entry.json", entry.model_dump_json())
    trial_log.append(home, "done", job.kind, job.key, attempt=number)
    return entry


class _Run:
    """The MLflow run of a recipe, opened when the server responds and there is something to log."""

    def __init__(self, job: Job, recipe: Recipe, number: int, progress: Progress):
        self._job, self._recipe, self._number, self._progress = job, recipe, number, progress
        self._open: OpenRun | None = None

    def begin(self) -> UnfinishedWork | None:
        """Open the run; returns the uploader of unfinished work, which needs the run, if such work is to be kept."""
        from tracking.runs.unfinished import UnfinishedWork

        if self._job.keep_unfinished:
            # the run keeps what another machine has uploaded of this recipe
            return UnfinishedWork(self._opened(0.0), self._job.folder / "result")
        with contextlib.suppress(Unavailable):
            self._open = self._asked()
        return None

    def _asked(self) -> OpenRun:
        job = self._job
        return _tracker(job.place).begin(
            self._recipe,
            job.facts,
            experiment_id=job.experiment_id,
            parent_run_id=job.parent_run_id,
            attempt=self._number,
        )

    def _opened(self, fraction: float = 1.0) -> OpenRun:
        self._open = self._open or _retry(self._asked, self._progress, fraction)
        return self._open

    def finish(self, entry: Entry, **shown: Any) -> Entry:
        """Upload everything; returns the entry with its location."""
        run = self._opened()
        return _retry(partial(run.finish, entry, self._job.folder / "result", **shown), self._progress, 1.0)

    def fail(self, error: Exception) -> None:
        """Close the run as failed.  A failing tracking server must not hide why the recipe failed."""
        with contextlib.suppress(RD3Error):
            if not isinstance(error, Unavailable):
                _retry(partial(self._opened().fail, *why(error)), self._progress, 1.0)
            elif self._open is not None:  # a server that was unreachable for long is not retried
                self._open.fail(*why(error))


def _generate(
    job: Job, recipe: Any, store: ReadableStore, progress: Progress, unfinished: UnfinishedWork | None
) -> Generator[Part, Entry, Entry]:
    """The entry with its files in the folder, from an earlier attempt or generated now."""
    kept, result = job.folder / "made.json", job.folder / "result"
    if kept.is_file():
        entry = Entry.model_validate_json(kept.read_bytes())
        with contextlib.suppress(DataMissing, DataCorrupt):
            check_files(result, entry.files, recipe.label())
            return entry
    _gather(job, recipe, store, progress)
    if job.larger is not None:
        with contextlib.suppress(DataMissing, DataCorrupt):  # otherwise this set is generated by itself
            _retry(partial(store.fetch, "set", job.larger), progress)
    if job.in_shares:
        _retry(lambda: collect(open_objects(job.place.artifacts), job.key, result), progress)
    if unfinished is not None:
        _retry(unfinished.download, progress)
    return (yield Part(recipe, job.folder, progress if unfinished is None else _uploading(progress, unfinished)))


def _gather(job: Job, recipe: Recipe, store: ReadableStore, progress: Progress) -> None:
    """Fetch the dataset and the parents, with retries while a server is unreachable; raises :class:`_BrokenParents`."""
    _retry(partial(ensure_data, job.place, recipe.data, progress), progress)
    broken, reasons = [], []
    for kind, key in recipe.parents():
        try:
            _retry(partial(store.fetch, kind, key), progress)
        except (DataMissing, DataCorrupt) as error:
            broken.append((kind, key))
            reasons.append(error.message)
    if broken:
        raise _BrokenParents(" ".join(reasons), broken)


_in_progress: set[UnfinishedWork] = set()
"""Unfinished work of the recipes that this process is running."""


def last_words() -> None:
    """On SIGTERM, upload completed work of the recipes in progress."""
    for unfinished in list(_in_progress):
        unfinished.upload(leaving=True)


@contextlib.contextmanager
def _uploaded_on_exit(unfinished: UnfinishedWork | None) -> Iterator[None]:
    """Register unfinished work, so that :func:`last_words` uploads it."""
    _in_progress.update({unfinished} if unfinished is not None else ())
    try:
        yield
    finally:
        if unfinished is not None:
            _in_progress.discard(unfinished)


def _uploading(progress: Progress, unfinished: UnfinishedWork) -> Progress:
    """Upload when the note changes: at the start of a block or an epoch, where no phase of a set is being timed."""
    last = [""]

    def report(fraction: float, note: str) -> None:
        progress(fraction, note)
        if note != last[0]:
            last[0] = note
            unfinished.upload()

    return report


def _retry(ask: Callable[[], T], progress: Progress, fraction: float = 0.0) -> T:
    """Call a server with retries while it is unreachable; the progress shows what the recipe waits for."""
    return retry(ask, waiting=lambda reason: progress(fraction, f"waiting: {reason}"))


@cache
def _tracker(place: Place) -> Tracker:
    """One connection per process: opening MLflow's database takes longer than a small trial."""
    from tracking.runs.runs import Tracker

    return Tracker(place)


class _BrokenParents(RD3Error):
    """Parents of this recipe are missing or damaged."""

    def __init__(self, message: str, parents: list[tuple[str, str]]):
        super().__init__(message)
        self.parents = parents


def _set_input(recipe: Recipe, store: ReadableStore) -> dict[str, Any] | None:
    """The set of an evaluation as an input of its MLflow run."""
    entry = store.find("set", recipe.set) if isinstance(recipe, EvaluationRecipe) else None
    if entry is None:
        return None
    name = f"{entry.recipe['method']} {entry.recipe['data']['name']} ipc{entry.recipe['ipc']}"
    return {"name": name, "digest": entry.content, "source": entry.artifact}


@contextlib.contextmanager
def _alone_in(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a recipe's folder.

    It is a kernel lock, so it is released when the process ends for any reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        deadline = time.monotonic() + ORPHAN_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                if time.monotonic() > deadline:
                    raise RD3Error(
                        f"Process {holder} still uses {folder} after {ORPHAN_WAIT_S:.0f} s.",
                        f"end process {holder}",
                    ) from None
                progress(0.0, f"waiting for process {holder} to end")
                time.sleep(0.1)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a process currently uses a recipe's folder."""
    try:
        with open(folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _clean_up(job: Job) -> None:
    """Remove the folders of finished recipes that the driver, on another machine, has put into the ledger."""
    for name in job.finished:
        folder = job.home / "work" / name
        if (folder / "entry.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
