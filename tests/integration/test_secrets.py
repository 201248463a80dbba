"""A grid on real servers, with every kind of secret in the environment: none of them is in anything that is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_grid import name_quick_teacher

from tracking.ledger.s3 import S3Objects
from tracking.place import Place
from tracking.runs.runs import Tracker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

DIRECT = "direct"
"""The database of the run that uses no tracking server."""
ROOT = Path(__file__).parents[2]
GRID = """name: secrets
methods: [random]
datasets: [digits]
ipc: [1]
teacher: quick
protocols: [{rd3-reduced: {epochs: 2}}]
student_seeds: [0]
"""


@dataclass
class Written:
    """What two runs have left: through the tracking server on a cluster, and straight to its database."""

    stack: Any
    folder: Path
    secrets: dict[str, str]
    seen: dict[str, set[str]]
    """Secret to the command lines that showed it while the runs went on."""

    @property
    def ray_logs(self) -> Path:
        name = hashlib.sha256(str(self.stack.home).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"rd3-stack-{name}"

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """(where, content) of every file, object and database row."""
        for root in (self.folder, self.ray_logs, self.stack.home):
            for path in root.rglob("*"):
                if path.is_file() and not path.is_symlink() and not _keeps_secrets(path.relative_to(root)):
                    yield str(path), path.read_bytes()
        objects = S3Objects("s3://rd3")
        for name in objects.names():
            yield f"s3://rd3/{name}", objects.get(name) or b""
        yield from self._database()

    def _database(self) -> Iterator[tuple[str, bytes]]:
        for name in ("mlflow", "mlflow_auth", DIRECT):
            with _connected(self.stack, "mlflow", self.secrets["database"], name) as asked:
                asked.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
                for (table,) in asked.fetchall():
                    asked.execute(f'SELECT * FROM "{table}"')
                    yield f"table {name}.{table}", repr(asked.fetchall()).encode()

    def leaks(self) -> set[tuple[str, str]]:
        """(secret, place) of everything that holds one."""
        return {
            (name, where)
            for where, content in self.texts()
            for name, secret in self.secrets.items()
            if secret.encode() in content
        }


@contextlib.contextmanager
def _connected(stack: Any, user: str, password: str, database: str) -> Iterator[Any]:
    import psycopg2

    where = {"host": "127.0.0.1", "port": stack.port + 1, "user": user, "dbname": database}
    with contextlib.closing(psycopg2.connect(**where, password=password)) as connection:
        connection.autocommit = True
        yield connection.cursor()


def _keeps_secrets(path: Path) -> bool:
    """Files of mode 600 that servers read their secrets from; the mode is checked below."""
    return path.parts[0] == "secrets" or path.name == "proxy-server.conf"


def _watch(secrets: dict[str, str], seen: dict[str, set[str]], done: threading.Event) -> None:
    """Read every command line on this machine, as any user may, until ``done``."""
    while not done.wait(0.2):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            for name in (name for name, secret in secrets.items() if secret in line):
                seen.setdefault(name, set()).add(line)


@pytest.fixture(scope="module")
def written(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "grid.yaml").write_text(GRID)
    kept = {path.name: path.read_text() for path in (stack.home / "secrets").iterdir()}
    secrets = {name: kept[name] for name in ("s3", "mlflow-user", "mlflow-admin", "mlflow-flask", "ray-token")}
    secrets |= {"database": kept["postgres-mlflow"], "superuser": kept["postgres"], "bystander": os.urandom(20).hex()}
    assert all(len(secret) >= 32 for secret in secrets.values())
    env = {**os.environ, **stack.env, "PYTHONPATH": str(ROOT), "PGPASSWORD": secrets["database"]}
    env |= {"AWS_SESSION_TOKEN_OF_ANOTHER": secrets["bystander"], "HF_TOKEN": secrets["bystander"]}
    with _connected(stack, "postgres", secrets["superuser"], "postgres") as asked:
        asked.execute(f"CREATE DATABASE {DIRECT} OWNER mlflow")
    database = f"postgresql+psycopg2://mlflow@127.0.0.1:{stack.port + 1}/{DIRECT}"
    runs = {
        "cluster": (["--address", stack.env["RAY_ADDRESS"]], {"RD3_ARTIFACTS": "s3://rd3/secrets"}),
        "database": ([], {"MLFLOW_TRACKING_URI": database, "RD3_ARTIFACTS": str(folder / "artifacts")}),
    }
    seen: dict[str, set[str]] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(secrets, seen, done))
    watcher.start()
    try:
        for name, (words, own) in runs.items():
            home = {"RD3_HOME": str(folder / name)}
            with pytest.MonkeyPatch.context() as patch:
                stack.reach(patch)
                name_quick_teacher(own["RD3_ARTIFACTS"], folder / name)
            for command in (
                ["run", str(folder / "grid.yaml"), *words],
                ["report", str(folder / "grid.yaml")],
                ["doctor"],
            ):
                call = [sys.executable, "-m", "pipelines.cli", *command]
                made = subprocess.run(call, cwd=ROOT, env=env | own | home, capture_output=True, text=True)
                (folder / f"{name}-{command[0]}.txt").write_text(made.stdout + made.stderr)
                assert made.returncode == 0, made.stderr[-3000:]
    finally:
        done.set()
        watcher.join()
    with pytest.MonkeyPatch.context() as patch:
        stack.reach(patch)
        yield Written(stack, folder, secrets, seen)


def test_nothing_that_is_written_holds_a_secret(written: Written):
    places = [where for where, _content in written.texts()]
    for kind in (
        "cluster-run.txt",
        "trials.jsonl",
        "s3://rd3/secrets/by-key/",
        "table mlflow.params",
        "/logs/",
        "/report/results.csv",
    ):
        assert any(kind in where for where in places), f"the scan does not see {kind}"
    assert written.leaks() == set()


def test_no_command_line_holds_a_secret(written: Written):
    assert written.seen == {}


def test_files_with_secrets_are_their_owners_alone(written: Written):
    files = [path for path in written.stack.home.rglob("*") if path.is_file()]
    kept = [path for path in files if _keeps_secrets(path.relative_to(written.stack.home))]
    assert len(kept) > 5
    assert {oct(path.stat().st_mode & 0o077) for path in kept} == {"0o0"}


def test_the_scan_finds_what_is_planted(written: Written, tmp_path: Path):
    planted = written.secrets["mlflow-user"]
    place = Place(written.stack.env["MLFLOW_TRACKING_URI"], "s3://rd3/secrets", tmp_path)
    tracker, objects = Tracker(place), S3Objects("s3://rd3")
    log = written.folder / "cluster" / "deep" / "a.log"
    log.parent.mkdir()
    log.write_text(f"url=http://rd3:{planted}@127.0.0.1\n")
    objects.put("secrets/planted.json", f'{{"password": "{planted}"}}'.encode())
    run_id = tracker.find_grid("rd3", "secrets")
    tracker.log(run_id, tags={"note": f"the password is {planted}"})
    try:
        found = {where for name, where in written.leaks() if name == "mlflow-user"}
        assert {str(log), "s3://rd3/secrets/planted.json", "table mlflow.tags"} <= found
    finally:
        log.unlink()
        objects.delete("secrets/planted.json")
        tracker.client.delete_tag(run_id, "note")


def test_the_watch_finds_a_command_line():
    secret = "0123456789abcdef" * 3
    seen: dict[str, set[str]] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=({"planted": secret}, seen, done))
    watcher.start()
    with subprocess.Popen([sys.executable, "-c", "input()", secret], stdin=subprocess.PIPE) as child:
        deadline = time.monotonic() + 120
        while not seen and time.monotonic() < deadline:
            time.sleep(0.1)
        child.communicate(b"\n")
    done.set()
    watcher.join()
    assert set(seen) == {"planted"}
