"""One trial: makes one recipe in a worker process, tracked, and says how it ended.  Never writes the ledger.

A trial may die at any moment and be started again, here or after the driver's death.  So it works in a folder of its
recipe, under a lock that an orphan of a killed driver still holds; what an earlier attempt left there is resumed, an
attempt that had finished is only reported, and the MLflow run is found again by the recipe's key.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines import trial_log
from pipelines.parcels import ensure_data
from pipelines.shares import collect, deliver
from rd3.datasets import Roots
from rd3.errors import Away, DataCorrupt, DataMissing, RD3Error, why
from rd3.recipe import EvaluationRecipe, Recipe, from_json
from rd3.store import Entry, ReadableStore, check_files, write_atomically
from tracking import artifacts
from tracking.documents import open_documents
from tracking.fields import note
from tracking.patience import patiently
from tracking.place import Place
from tracking.store import GivenStore

if TYPE_CHECKING:
    from tracking.carry import Carrier
    from tracking.runs import OpenRun, Tracker

T = TypeVar("T")

ORPHAN_WAIT_S = 120.0
"""How long a new attempt waits for an older process to let go of the recipe's folder."""
REPORT_EVERY_S = 3.0

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain data."""

    kind: str
    key: str
    recipe: str
    """JSON."""
    facts: dict[str, Any]
    """Names for the MLflow run that the recipe itself does not hold, such as the teacher's role."""
    tracking_uri: str
    artifacts: str
    home: str
    data: str | None
    experiment_id: str
    parent_run_id: str | None
    gpu: bool = False
    alone: bool = False
    """Nothing else runs on this machine meanwhile (``timing: exclusive``)."""
    larger: str | None = None
    """Key of a set of which this one is the first images, if there is one."""
    blocks: tuple[int, int] | None = None
    """(first, step) of the blocks of a set that this trial makes, for another to put together; None: all of it."""
    in_shares: bool = False
    """Others have made blocks of this set, which wait at the artifact root."""
    given: list[dict[str, Any]] = field(default_factory=list)
    """Ledger entries of all that the recipe is made from."""
    carry: bool = False
    """Unfinished work is to outlive this machine."""
    anew: bool = False
    """What was made before is gone or damaged: nothing of it is to be reported again."""
    settled: list[str] = field(default_factory=list)
    """``kind/key`` of what came into the ledger lately: its scratch on any machine may go."""

    @property
    def place(self) -> Place:
        return Place(tracking_uri=self.tracking_uri, artifacts=self.artifacts, home=Path(self.home))

    @property
    def roots(self) -> Roots:
        return Roots(data=Path(self.data) if self.data else None, home=Path(self.home))

    @property
    def store(self) -> GivenStore:
        return GivenStore(self.place, [Entry.model_validate(entry) for entry in self.given])

    @property
    def folder(self) -> Path:
        if self.blocks is None:
            return work_folder(Path(self.home), self.kind, self.key)
        first, step = self.blocks
        return work_folder(Path(self.home), "share", f"{self.key}-{first + 1}of{step}")


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended: ``entry`` if it is done, else a status and a reason."""

    status: str
    reason: str = ""
    entry: dict[str, Any] | None = None
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Parents (kind, key) whose artifact is missing or damaged."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialEnd:
        plain = json.loads(text)
        return cls(**{**plain, "broken": [(kind, key) for kind, key in plain["broken"]]})


def work_folder(home: Path, kind: str, key: str) -> Path:
    """Where a recipe is made; what is in it is scratch."""
    return home / "work" / kind / key


def run_trial(config: dict[str, Any]) -> None:
    """The trainable that Tune runs in a worker process; ``config["job"]`` is a :class:`Job` as JSON."""
    from ray import tune

    job = Job(**json.loads(config["job"]))
    _settle_process(job.gpu)
    last = [time.monotonic()]

    def progress(fraction: float, note: str) -> None:
        if time.monotonic() - last[0] >= REPORT_EVERY_S:
            last[0] = time.monotonic()
            tune.report({"fraction": fraction, "note": note})

    tune.report({"end": attempt(job, progress).to_json()})


def _settle_process(gpu: bool) -> None:
    """One thread, and no look at a GPU that the trial was not given (Ray leaves it visible to CPU-only work)."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _die_with_parent()
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


_carriers: set[Carrier] = set()
"""Of the recipe that this process makes."""


def _last_words() -> None:
    """The machine is taken away with notice (SIGTERM): what is finished of the recipe leaves it."""
    for carrier in list(_carriers):
        carrier.carry(leaving=True)


@cache
def _die_with_parent() -> None:
    """Leave when the process that started this worker is gone: a killed driver takes Ray down, but not the workers."""
    parent = os.getppid()
    atexit.register(_last_words)  # Ray makes an exit of SIGTERM

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        _last_words()
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def attempt(job: Job, progress: Progress) -> TrialEnd:
    """Make the recipe of a job, or say why not.  Only the death of the process is left to the caller to see."""
    recipe = from_json(job.recipe)
    home = Path(job.home)
    try:
        with _alone_in(job.folder, progress):
            if job.blocks is not None:
                _make_share(job, recipe, progress)
                return TrialEnd("done")
            finished = job.folder / "entry.json"
            if job.anew:
                finished.unlink(missing_ok=True)
                (job.folder / "made.json").unlink(missing_ok=True)
            entry = _finished(job, finished, progress)
            if entry is not None:
                if not trial_log.is_done(home, job.key):
                    trial_log.append(home, "done", job.kind, job.key, attempt=trial_log.attempts(home, job.key))
            else:
                entry = _make(job, recipe, progress)
            return TrialEnd("done", entry=entry.model_dump(mode="json"))
    except _BrokenParents as error:
        end = TrialEnd(error.status, str(error), broken=error.parents)
    except Exception as error:  # whatever it is, it is this recipe's, and the others go on
        end = TrialEnd(*why(error))
    if job.blocks is None:
        trial_log.append(home, "fail", job.kind, job.key, status=end.status, reason=end.reason)
    return end


def _finished(job: Job, path: Path, progress: Progress) -> Entry | None:
    """What an attempt before a driver's death had finished, if its files are still where it sent them."""
    if not path.is_file():
        return None
    entry = Entry.model_validate_json(path.read_bytes())
    if _patiently(partial(artifacts.exists, entry, job.tracking_uri), progress, 1.0):
        return entry
    trial_log.append(Path(job.home), "forgotten", job.kind, job.key)
    path.unlink()
    return None


def _make_share(job: Job, recipe: Any, progress: Progress) -> None:
    """Some blocks of a set, sent to where the trial finds them that puts the set together."""
    from rd3.run import perform_blocks

    store, result = job.store, job.folder / "result"
    documents = open_documents(job.artifacts)
    _gather(job, recipe, store, progress)
    _patiently(lambda: collect(documents, job.key, result, tuple(job.blocks)), progress)
    device = "cuda" if job.gpu else "cpu"
    perform_blocks(recipe, store, job.roots, job.folder, tuple(job.blocks), device=device, progress=progress)
    _patiently(lambda: deliver(documents, job.key, result), progress, 1.0)
    shutil.rmtree(result, ignore_errors=True)


def _make(job: Job, recipe: Any, progress: Progress) -> Entry:
    """One tracked attempt; the finished entry is left in the folder, for an attempt after a driver that died."""
    from tracking.carry import Carrier

    home = Path(job.home)
    number = trial_log.attempts(home, job.key) + 1
    trial_log.append(home, "start", job.kind, job.key, attempt=number, label=recipe.label())
    _sweep(job)
    store, run = job.store, None

    def begin() -> OpenRun:
        return _tracker(job.place).begin(
            recipe, job.facts, experiment_id=job.experiment_id, parent_run_id=job.parent_run_id, attempt=number
        )

    try:
        if job.carry:
            run = _patiently(begin, progress)  # what another machine had made lies there
        else:
            with contextlib.suppress(Away):  # its run can be opened when there is something to say
                run = begin()
        carrier = Carrier(run, job.folder / "result") if job.carry and run is not None else None
        with _carrying(carrier):
            entry = _made(job, recipe, store, progress, carrier)
        trial_log.append(home, "made", job.kind, job.key, attempt=number)
        if run is None:
            run = _patiently(begin, progress, 1.0)
        shown = {"set_input": _set_input(recipe, store), "note": note(recipe, store.find)}
        finish = partial(run.finish, entry, job.folder / "result", **shown)
        entry = _patiently(finish, progress, 1.0)
        if carrier is not None:
            carrier.drop()
    except Exception as error:
        # A tracking server that fails as well must not hide why the recipe failed.
        with contextlib.suppress(RD3Error):
            if not isinstance(error, Away):
                run = run or _patiently(begin, progress, 1.0)
                _patiently(partial(run.fail, *why(error)), progress, 1.0)
            elif run is not None:  # what is away has been waited for long enough
                run.fail(*why(error))
        raise
    write_atomically(job.folder / "entry.json", entry.model_dump_json())
    trial_log.append(home, "done", job.kind, job.key, attempt=number)
    return entry


def _made(job: Job, recipe: Any, store: ReadableStore, progress: Progress, carrier: Carrier | None) -> Entry:
    """The entry of what is made, with its files in the folder: by an earlier attempt, or now."""
    from rd3.run import perform

    kept, result = job.folder / "made.json", job.folder / "result"
    if kept.is_file():
        entry = Entry.model_validate_json(kept.read_bytes())
        with contextlib.suppress(DataMissing, DataCorrupt):
            check_files(result, entry.files, recipe.label())
            return entry
    _gather(job, recipe, store, progress)
    if job.larger is not None:
        with contextlib.suppress(DataMissing, DataCorrupt):  # then this set is made by itself
            _patiently(partial(store.fetch, "set", job.larger), progress)
    if job.in_shares:
        _patiently(lambda: collect(open_documents(job.artifacts), job.key, result), progress)
    if carrier is not None:
        _patiently(carrier.fetch, progress)
    entry = perform(
        recipe,
        store,
        job.roots,
        job.folder,
        device="cuda" if job.gpu else "cpu",
        shared_machine=not job.alone,
        larger=job.larger,
        progress=progress if carrier is None else _carried(progress, carrier),
    )
    write_atomically(kept, entry.model_dump_json())
    return entry


def _gather(job: Job, recipe: Recipe, store: ReadableStore, progress: Progress) -> None:
    """Dataset and parents on this machine, each waited for while its server is away; or which parents are broken."""
    _patiently(partial(ensure_data, job.place, job.roots, recipe.data, progress), progress)
    broken, reasons = [], []
    for kind, key in recipe.parents():
        try:
            _patiently(partial(store.fetch, kind, key), progress)
        except (DataMissing, DataCorrupt) as error:
            broken.append((kind, key))
            reasons.append(error.message)
    if broken:
        raise _BrokenParents(" ".join(reasons), broken)


@contextlib.contextmanager
def _carrying(carrier: Carrier | None) -> Iterator[None]:
    """What is unfinished inside can be told its last words."""
    _carriers.update({carrier} if carrier is not None else ())
    try:
        yield
    finally:
        _carriers.clear()


def _carried(progress: Progress, carrier: Carrier) -> Progress:
    """Carries when the note changes: at the begin of a block or an epoch, where no phase of a set is being timed."""
    last = [""]

    def tell(fraction: float, note: str) -> None:
        progress(fraction, note)
        if note != last[0]:
            last[0] = note
            carrier.carry()

    return tell


def _patiently(ask: Callable[[], T], progress: Progress, fraction: float = 0.0) -> T:
    """Ask a server that may be away; whoever looks at the run sees what it waits for, and with how much done."""
    return patiently(ask, waiting=lambda reason: progress(fraction, f"waiting: {reason}"))


@cache
def _tracker(place: Place) -> Tracker:
    """One connection a process: opening MLflow's database costs more than a small trial."""
    from tracking.runs import Tracker

    return Tracker(place)


class _BrokenParents(RD3Error):
    """Something that this recipe is made from is no longer what the ledger says."""

    def __init__(self, message: str, parents: list[tuple[str, str]]):
        super().__init__(message)
        self.parents = parents


def _set_input(recipe: Recipe, store: ReadableStore) -> dict[str, Any] | None:
    """The set of an evaluation, as its MLflow run names it."""
    entry = store.find("set", recipe.set) if isinstance(recipe, EvaluationRecipe) else None
    if entry is None:
        return None
    name = f"{entry.recipe['method']} {entry.recipe['data']['name']} ipc{entry.recipe['ipc']}"
    return {"name": name, "digest": entry.content, "source": entry.artifact}


@contextlib.contextmanager
def _alone_in(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a recipe's folder.

    The lock is the kernel's, so it goes with the process that holds it, however that ends.
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
                        f"Process {holder} still works in {folder} after {ORPHAN_WAIT_S:.0f} s.",
                        f"end process {holder}",
                    ) from None
                progress(0.0, f"waiting for process {holder} to end")
                time.sleep(0.1)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a process works in a recipe's folder at this moment."""
    try:
        with open(folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _sweep(job: Job) -> None:
    """Remove finished folders on this machine that the driver, on another one, has put into the ledger."""
    for name in job.settled:
        folder = Path(job.home) / "work" / name
        if (folder / "entry.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
