"""Every part of a platform dies while a grid is being made; the results are those of a run that nobody disturbed.

Real processes of a real stack.  Each test sees that work was in flight when it struck.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import KILLS, Chaos, Through, settle
from disturbed import Disturbed, kill

from rd3.store import sha256_file
from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import open_objects
from tracking.store import TrackedStore

pytestmark = [pytest.mark.platform, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

CELLS = Path(__file__).with_name("cells.yaml")
OUTAGE_S = 20.0
MANY_FILES = """
name: many
methods: [random]
datasets: [digits]
ipc: [100]
teacher: resnet18_w16
protocol: {labels: hard, epochs: 1, precision: fp32}
protocols: [rd3-reduced]
student_seeds: [0]
"""

Disturb = Callable[..., Disturbed]


@pytest.fixture(scope="module")
def quiet(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The same grid, undisturbed, in an empty ledger."""
    run = Disturbed(stack.env, CELLS, tmp_path_factory.mktemp("quiet"), "quiet")
    run.prepare()
    run.finish()
    assert run.second_attempts() == 0
    assert len(run.correct()) == 6
    return run


@pytest.fixture
def disturb(stack: Any, quiet: Disturbed, tmp_path: Path) -> Iterator[Disturb]:
    """Makes runs in ledgers of their own; afterwards their drivers are gone and the whole stack is up."""
    made: list[Disturbed] = []

    def make(name: str, grid: Path = CELLS) -> Disturbed:
        made.append(Disturbed(stack.env, grid, tmp_path / name, name))
        made[-1].prepare()
        return made[-1]

    yield make
    for run in made:
        run.close()
    stack.do("start")


def test_a_worker_is_killed(disturb: Disturb, quiet: Disturbed):
    run = disturb("worker")
    run.start()
    with run.held("evaluation") as victim:
        kill(victim["pid"])
    assert not run.is_done(victim["key"])
    run.finish()
    assert run.attempts(victim["key"]) >= 2
    run.check(quiet)


@pytest.mark.long  # its sibling: a sweep loses a node in test_fault_sweep.py
def test_a_node_is_killed(stack: Any, disturb: Disturb, quiet: Disturbed):
    run = disturb("node")
    run.start()
    lost = stack.pids("ray-worker")
    with run.held(where=lambda one: _below(one, lost)) as victim:
        stack.do("kill", "ray-worker")
    assert not run.is_done(victim["key"])
    run.finish()
    run.check(quiet)


def test_the_driver_is_killed(disturb: Disturb, quiet: Disturbed):
    run = disturb("driver")
    driver = run.start()
    with run.held("evaluation") as victim:
        driver.kill()
        driver.wait()
    assert not run.is_done(victim["key"])
    run.finish()
    run.check(quiet)


def test_the_driver_has_to_leave(disturb: Disturb, quiet: Disturbed):
    """SIGTERM with time to spare, as a cloud gives it to a machine that it takes back."""
    run = disturb("notice")
    driver = run.start()
    with run.held("set", where=lambda one: _half_made(run, one)) as victim:
        driver.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert "RUNNING" not in {status for _key, status in run.statuses()}
    before = {f"blocks/{path.name}": sha256_file(path) for path in _blocks(run, victim)}
    assert before, "what was finished is on the disk"
    run.finish()
    with run.environment():
        after = Ledger(run.place.artifacts).find("set", victim["key"]).files
    assert before.items() <= after.items(), "and is not made again: a block says how long it took"
    run.check(quiet)


@pytest.mark.long  # its shorter siblings: the signal in test_leave.py, the upload in test_unfinished.py
def test_a_trial_has_to_leave(disturb: Disturb, quiet: Disturbed):
    """SIGTERM, as `pipelines.leave` sends it on a machine that is taken back: what is finished of a set leaves it."""
    run = disturb("leaving")
    run.start()
    with run.held("set", where=lambda one: "sre2l" in one["label"] and _half_made(run, one)) as victim:
        assert not run.files(victim["key"], "unfinished/blocks"), "it is too early for that"
        os.kill(victim["pid"], signal.SIGTERM)  # it comes when the process goes on
    run.until(lambda: run.files(victim["key"], "unfinished/blocks"))
    run.finish()
    run.check(quiet)


@pytest.mark.parametrize(
    "part",
    [
        "mlflow",
        pytest.param("postgres", marks=pytest.mark.long),  # its shorter sibling: mlflow, which needs it for all it does
        pytest.param("s3", marks=pytest.mark.long),  # its shorter sibling: the death of S3 in mid-upload, below
    ],
)
def test_a_server_is_away(stack: Any, disturb: Disturb, quiet: Disturbed, part: str):
    run = disturb(part)
    run.start()
    with run.held("evaluation") as victim:
        stack.do("kill", part)
    assert not run.is_done(victim["key"])
    time.sleep(OUTAGE_S)  # how long the server is away; nothing has to happen within it
    stack.do("start", part)
    run.finish()
    run.check(quiet, again=False)
    assert run.second_attempts() == 0, "an outage of seconds costs nobody an attempt"


def test_s3_dies_in_the_middle_of_an_upload(stack: Any, disturb: Disturb, tmp_path: Path):
    """Of a set of a hundred files some are there and some are not."""
    grid = tmp_path / "many.yaml"
    grid.write_text(MANY_FILES)
    quiet, run = disturb("upload-quiet", grid), disturb("upload", grid)
    quiet.finish()
    run.start()
    with run.held("set", event="made", where=lambda one: len(run.files(one["key"], "set/blocks")) >= 10) as victim:
        assert len(run.files(victim["key"], "set/blocks")) < 100
        stack.do("kill", "s3")
    assert not run.is_done(victim["key"])
    stack.do("start", "s3")
    run.finish()
    run.check(quiet, again=False)
    [key] = quiet.done("set")
    assert len(run.files(key, "set/blocks")) == len(quiet.files(key, "set/blocks")) == 100
    with run.environment():
        store = TrackedStore(run.place)
        store.fetch("set", key)


def test_a_full_disk(disturb: Disturb, quiet: Disturbed, tmp_path: Path):
    run = disturb("full")
    if os.geteuid():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("only root can mount a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(run.home)], check=True)
    try:
        run.start()
        run.until(lambda: run.in_flight("set"))
        ballast = run.home / "ballast"
        _fill(ballast)
        assert run.wait() in (2, 3)
        assert "No space left" in run.words()
        ballast.unlink()
        run.finish()
        run.check(quiet)
    finally:
        run.close()
        kept = tmp_path / "kept"
        shutil.copytree(run.home, kept, ignore=shutil.ignore_patterns("ray"))
        subprocess.run(["umount", "-l", str(run.home)], check=True)


@pytest.mark.long  # its shorter siblings: damage is found in test_s3_tracking.py, and made again in test_grid_run.py
def test_a_damaged_artifact(disturb: Disturb, quiet: Disturbed):
    """In the cache of a machine it is fetched again, at its source it is made again."""
    run = disturb("damaged")
    driver = run.start()
    with run.held("evaluation", where=lambda _one: _cached_teacher(run)):
        driver.kill()
        driver.wait()
    teacher = _cached_teacher(run)
    _damage(teacher)
    driver = run.start()
    with run.held("evaluation", where=lambda _one: run.done("evaluation")):
        assert run.attempts(teacher.name) == 1, "the teacher's files are whole at their source"
        driver.kill()
        driver.wait()
    with run.environment():
        entry = Ledger(run.place.artifacts).find("teacher", teacher.name)
        source = open_objects(f"s3://rd3/mlflow/{entry.artifact.removeprefix('mlflow-artifacts:/')}")
        weights = next(name for name in source.names() if name.endswith(".safetensors"))
        source.put(weights, source.get(weights)[:-1])
    _damage(teacher)
    run.finish()
    assert run.attempts(teacher.name) == 2
    run.check(quiet)


@pytest.mark.long  # its shorter siblings: a worker and the driver are killed, each once, above
def test_random_kills(stack: Any, disturb: Disturb, quiet: Disturbed):
    run = disturb("random")
    chaos = Chaos(run, stack.do, random.Random(0), outage_s=1.0)
    with contextlib.suppress(Through):  # on a fast machine the grid may be done before the last strike
        for what in chaos.draw.choices(KILLS, k=5):
            chaos.strike(what)
    assert chaos.struck
    settle(run)
    run.check(quiet)


@pytest.mark.long  # its shorter siblings: wrong secrets in test_bad_platform.py, without a cluster
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "rejects the S3 credentials"),
        ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, "does not let us in"),
    ],
)
def test_a_wrong_secret(disturb: Disturb, wrong: dict[str, str], says: str):
    run = disturb("secret")
    run.start(**wrong)
    assert run.wait() == 2
    assert says in run.words()
    assert not (run.home / "trials.jsonl").exists(), "no trial has begun"


def _below(event: dict[str, Any], ancestors: set[int]) -> bool:
    """Whether the process of an event descends from one of these."""
    process = event["pid"]
    while process > 1 and process not in ancestors:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return False
    return process in ancestors


def _blocks(run: Disturbed, event: dict[str, Any]) -> list[Path]:
    return sorted((run.home / "work" / "set" / event["key"] / "result" / "blocks").glob("[!.]*"))


def _half_made(run: Disturbed, event: dict[str, Any]) -> bool:
    return 1 <= len(_blocks(run, event)) <= 2


def _cached_teacher(run: Disturbed) -> Path | None:
    return next((run.home / "cache" / "teacher").glob("[!.]*"), None)


def _fill(path: Path) -> None:
    try:
        with open(path, "wb") as stream:
            while True:
                stream.write(b"\0" * 2**16)
                stream.flush()
    except OSError:
        pass


def _damage(folder: Path) -> None:
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
