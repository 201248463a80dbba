"""Studies in the tracking database: Optuna's tables beside MLflow's, in a schema of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy

from pipelines.sweep.files import load_sweep
from pipelines.sweep.storage import SCHEMA, open_storage
from pipelines.sweep.study import Ended, Tuning
from tracking.place import Place
from tracking.runs.runs import Tracker

pytestmark = [pytest.mark.integration, pytest.mark.platform, pytest.mark.filterwarnings("ignore")]


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PostgreSQL is not installed")
    return (Path(on_path) if on_path else found[-1]).parent


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of this test's own on loopback; its URL has no password, that is in the environment."""
    binaries, folder = _binaries(), Path(tempfile.mkdtemp(prefix="rd3-pg-"))
    owner = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    monkeypatch.setenv("PGPASSWORD", password.read_text())
    if owner:
        for path in (folder, password):
            shutil.chown(path, owner, owner)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*words: str) -> None:
        subprocess.run([str(binaries / words[0]), *words[1:]], check=True, capture_output=True, user=owner, cwd=folder)

    call("initdb", "-D", "data", "-U", "rd3", "--pwfile=password", "--auth=scram-sha-256", "--encoding=UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    call("pg_ctl", "-D", "data", "-l", "log", "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg2://rd3@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_studies_live_beside_the_tables_of_mlflow(database: str, tmp_path: Path):
    tracker = Tracker(Place(database, str(tmp_path / "artifacts"), tmp_path))
    experiment = tracker.experiment("before")
    sweep = load_sweep("demo").model_copy(update={"trials": 6})
    asked = []
    for _driver in range(2):
        tuning = Tuning(sweep, "study", open_storage("tracking", database, tmp_path / "unused"))
        batch = tuning.next_batch()
        asked += batch
        for number, point in batch.items():
            tuning.tell(
                number, point, Ended("COMPLETE", 50.0 + number, {5: 1.0}, facts={"tested": 140}), datetime.now()
            )
    assert asked == [0, 1, 2, 3, 4, 5]
    same = Tuning(sweep, "study", open_storage(database, "", tmp_path / "unused"))
    assert [(one.number, one.value) for one in same.trials()] == [(number, 50.0 + number) for number in range(6)]
    assert same.trials()[0].user_attrs == {"tested": 140}
    assert tracker.experiment("before") == experiment
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        wanted = "SELECT table_schema FROM information_schema.tables WHERE table_name = 'alembic_version'"
        assert sorted(connection.execute(sqlalchemy.text(wanted)).scalars()) == ["public", SCHEMA]
    engine.dispose()
