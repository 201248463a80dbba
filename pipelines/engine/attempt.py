"""One attempt at the recipes of a trial: each is run and tracked, and ends by itself.  Never writes the ledger.

A trial may die at any moment and be restarted, here or after the driver's death.  So each recipe has its own work
folder, under a lock that an orphan of a killed driver still holds; work of an earlier attempt is resumed, a finished
attempt is only reported, and the MLflow run is found again by the recipe's key.  In the folder, ``made.json`` is the
entry of a result whose upload may be missing, ``entry.json`` the entry of a finished one.

Several recipes are evaluations that are trained together, as a pack.  :func:`_attempt_one` takes a single recipe from
start to end and yields where the recipe is run together with the others: once, and again if files of its parents are
damaged after they were verified.  A trial of one recipe is a pack of one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.engine import trial_log
from pipelines.engine.job import Job, TrialEnd, given_store
from pipelines.engine.parents import UNREADABLE, BrokenParents, fetch_inputs
from pipelines.engine.recipe_run import RecipeRun
from pipelines.engine.shards import download_blocks, upload_blocks
from pipelines.engine.uploads import registered_for_upload, uploading
from pipelines.engine.waiting import alone_in, retry_shown
from rd3.errors import DataCorrupt, DataMissing, ends_the_process, is_device_error, why
from rd3.kept_students import adds_student
from rd3.perform import Part, Progress, perform, perform_blocks, perform_pack
from rd3.recipe import SetRecipe, from_json
from rd3.store import STUDENT, Entry, ReadableStore, check_files, write_atomically
from tracking.ledger.object_store import open_objects
from tracking.runs import artifacts
from tracking.runs.fields import input_set, note
from tracking.runs.students import upload_student

if TYPE_CHECKING:
    from tracking.runs.unfinished import UnfinishedWork

Outcome = Entry | Exception | None
"""The entry of a recipe that was run (None for a share of a set), or the error that ended it."""
Attempt = Generator[Part, Entry | None, TrialEnd]
"""Yields the recipe to run, once or twice, is sent its entry or thrown its error, and returns how it ended."""


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
    attempts = [_attempt_one(job, store, partial(progress, number)) for number, job in enumerate(jobs)]
    with contextlib.ExitStack() as stack:
        for each in attempts:
            stack.callback(each.close)
        outcomes: dict[int, Outcome] = dict.fromkeys(range(len(jobs)))  # to be sent None starts a generator
        while parts := _next_parts(attempts, outcomes, ended):
            some = [jobs[number] for number in parts]
            outcomes = dict(zip(parts, _run_together(some, list(parts.values()), store), strict=True))
            store = given_store(jobs)  # for a second run: in a new store nothing counts as verified


def _next_parts(
    attempts: Sequence[Attempt], outcomes: dict[int, Outcome], ended: Callable[[int, TrialEnd], None]
) -> dict[int, Part]:
    """Pass outcomes to their attempts; returns what these want to run next, and reports those that have ended.

    Empties ``outcomes``, as errors keep what their run had in memory.
    """
    parts: dict[int, Part] = {}
    for number in list(outcomes):
        one, outcome = attempts[number], outcomes.pop(number)
        try:
            parts[number] = one.throw(outcome) if isinstance(outcome, Exception) else one.send(outcome)
        except StopIteration as stop:
            ended(number, stop.value)
    return parts


def _run_together(jobs: Sequence[Job], parts: Sequence[Part], store: ReadableStore) -> Sequence[Outcome]:
    """The outcome of each; entries are written to the recipes' folders before any upload."""
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


def _perform(jobs: Sequence[Job], parts: Sequence[Part], store: ReadableStore) -> Sequence[Outcome]:
    """Run a pack, one recipe of any kind, or a share of a set."""
    job, part = jobs[0], parts[0]
    device, roots = "cuda" if job.gpu else "cpu", job.place.roots
    if len(parts) > 1:
        return perform_pack(parts, store, roots, device=device)
    if job.blocks is not None:
        assert isinstance(part.recipe, SetRecipe), "only sets are generated in shares"
        perform_blocks(part.recipe, store, roots, part.out, job.blocks, device=device, progress=part.progress)
        return [None]
    entry = perform(
        part.recipe,
        store,
        roots,
        part.out,
        device=device,
        shared_machine=not job.alone,
        larger=job.larger,
        progress=part.progress,
        keep_student=part.keep_student,
        cached_logits=part.cached_logits,
    )
    return [entry]


def _attempt_one(job: Job, store: ReadableStore, progress: Progress) -> Attempt:
    """One recipe, from the lock on its folder to its end."""
    recipe = from_json(job.recipe)
    try:
        with alone_in(job.folder, progress):
            if job.blocks is not None:
                yield from _share(job, job.blocks, recipe, store, progress)
                return TrialEnd("done")
            entry = yield from _entry(job, recipe, store, progress)
            return TrialEnd("done", entry=entry.model_dump(mode="json"))
    except BrokenParents as error:
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
    fetch_inputs(job, recipe, store, progress)
    retry_shown(lambda: download_blocks(objects, job.key, result, blocks), progress)
    yield from _run(job, Part(recipe, job.folder, progress))
    retry_shown(lambda: upload_blocks(objects, job.key, result), progress, 1.0)
    shutil.rmtree(result, ignore_errors=True)


def _entry(job: Job, recipe: Any, store: ReadableStore, progress: Progress) -> Generator[Part, Entry, Entry]:
    """The finished entry, of an earlier attempt or of this one."""
    home, finished = job.home, job.folder / "entry.json"
    if job.ignore_earlier:
        finished.unlink(missing_ok=True)
        (job.folder / "made.json").unlink(missing_ok=True)
    if finished.is_file():
        entry = Entry.model_validate_json(finished.read_bytes())
        if not retry_shown(partial(artifacts.exists, entry, job.place.tracking_uri), progress, 1.0):
            trial_log.append(home, "forgotten", job.kind, job.key)
            finished.unlink()
        elif _is_wanted(job, entry):
            if not trial_log.is_done(home, job.key):
                trial_log.append(home, "done", job.kind, job.key, attempt=trial_log.attempts(home, job.key))
            return entry
    return (yield from _tracked(job, recipe, store, progress))


def _tracked(job: Job, recipe: Any, store: ReadableStore, progress: Progress) -> Generator[Part, Entry, Entry]:
    """One tracked attempt; the finished entry is kept in the folder, in case the driver dies."""
    home = job.home
    number = trial_log.attempts(home, job.key) + 1
    trial_log.append(home, "start", job.kind, job.key, attempt=number, label=recipe.label())
    for name in job.finished:  # the driver, on another machine, has put these into the ledger
        if (home / "work" / name / "entry.json").is_file():
            shutil.rmtree(home / "work" / name, ignore_errors=True)
    run = RecipeRun(job, recipe, number, progress)
    try:
        unfinished = run.begin() if job.recorded is None else None
        with registered_for_upload(unfinished):
            entry = yield from _generate(job, recipe, store, progress, unfinished)
        trial_log.append(home, "made", job.kind, job.key, attempt=number)
        if job.recorded is None:
            entry = run.finish(entry, input_set=input_set(recipe, store.find), note=note(recipe, store.find))
        else:
            entry = _upload_student(job, entry, progress)
        if unfinished is not None:
            unfinished.discard()
    except Exception as error:
        if job.recorded is None:  # else the run is that of the recorded result, which stays
            run.fail(error)
        raise
    write_atomically(job.folder / "entry.json", entry.model_dump_json())
    trial_log.append(home, "done", job.kind, job.key, attempt=number)
    return entry


def _generate(
    job: Job, recipe: Any, store: ReadableStore, progress: Progress, unfinished: UnfinishedWork | None
) -> Generator[Part, Entry, Entry]:
    """The entry with its files in the folder, from an earlier attempt or generated now."""
    kept, result = job.folder / "made.json", job.folder / "result"
    if kept.is_file():
        entry = Entry.model_validate_json(kept.read_bytes())
        with contextlib.suppress(DataMissing, DataCorrupt):
            check_files(result, entry.files, recipe.label())
            if not _lacks_student(job, entry):
                return entry
    fetch_inputs(job, recipe, store, progress)
    if job.larger is not None:
        with contextlib.suppress(DataMissing, DataCorrupt):  # otherwise this set is generated by itself
            retry_shown(partial(store.fetch, "set", job.larger), progress)
    if job.blocks_uploaded:
        retry_shown(lambda: download_blocks(open_objects(job.place.artifacts), job.key, result), progress)
    if unfinished is not None:
        retry_shown(unfinished.download, progress)
    progress = progress if unfinished is None else uploading(progress, unfinished)
    part = Part(recipe, job.folder, progress, keep_student=job.keep_student, cached_logits=job.cached_logits)
    performed = yield from _run(job, part)
    assert performed is not None, "only a share has no entry"
    return performed


def _lacks_student(job: Job, entry: Entry) -> bool:
    """Whether an entry of an earlier attempt was stored without the student that is to be kept."""
    return job.keep_student and STUDENT not in entry.files


def _is_wanted(job: Job, entry: Entry) -> bool:
    """Whether the entry of a finished attempt is what the driver waits for."""
    if job.recorded is not None:
        return adds_student(entry, Entry.model_validate(job.recorded))
    return not _lacks_student(job, entry)


def _upload_student(job: Job, again: Entry, progress: Progress) -> Entry:
    """The recorded entry with the student of the evaluation that ran again; its MLflow run is not opened."""
    recorded, cache = Entry.model_validate(job.recorded), job.home / "cache"
    upload = partial(upload_student, recorded, again, job.folder / "result", cache, job.place.tracking_uri)
    return retry_shown(upload, progress, 1.0)


def _run(job: Job, part: Part) -> Generator[Part, Entry | None, Entry | None]:
    """Run a part; if files cannot be read, once more, after the parents are verified and damaged copies replaced."""
    try:
        return (yield part)
    except UNREADABLE:
        fetch_inputs(job, part.recipe, given_store([job]), part.progress)
    return (yield part)
