"""A platform that is not as it should be: one sentence before anything is written, from the real servers."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.auth
import pytest

from pipelines import cli
from tracking.ledger import s3
from tracking.ledger.object_store import open_objects

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
GRID = "name: refused\nmethods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\n"


@pytest.fixture
def grid(tmp_path: Path) -> str:
    (tmp_path / "refused.yaml").write_text(GRID)
    return str(tmp_path / "refused.yaml")


@pytest.fixture
def root(driver: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An artifact root of the test's own, which must be empty in the end."""
    root = f"s3://rd3/{uuid.uuid4().hex}"
    monkeypatch.setenv("RD3_ARTIFACTS", root)
    objects = open_objects(root)
    objects.client  # noqa: B018 - made here, with the right credentials
    yield root
    assert list(objects.names()) == []


@pytest.fixture
def refused(
    grid: str, root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What ``rd3 run`` says on standard error when it refuses."""

    def run(**changed: str) -> str:
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["rd3", "run", grid])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said.count("\n") == 1, "a sentence and a fix"
        return said

    return run


def test_a_tracking_server_that_is_down(refused, closed_port: int):
    uri = f"http://127.0.0.1:{closed_port}"
    said = refused(MLFLOW_TRACKING_URI=uri)
    assert said.startswith(f"TrackingUnavailable: The tracking server {uri} does not respond: ")
    assert "correct MLFLOW_TRACKING_URI" in said


def test_a_wrong_password(refused, driver: Stack):
    said = refused(MLFLOW_TRACKING_PASSWORD="wrong-and-secret")
    assert f"The tracking server {driver.env['MLFLOW_TRACKING_URI']} rejects the login (HTTP 401)." in said
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    assert "wrong-and-secret" not in said


def test_a_wrong_secret(refused, driver: Stack):
    said = refused(AWS_SECRET_ACCESS_KEY="wrong-and-secret")
    assert f"{driver.env['AWS_ENDPOINT_URL']} rejects the S3 credentials for s3://rd3/" in said
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert "wrong-and-secret" not in said


def test_a_bucket_that_does_not_exist(refused):
    said = refused(RD3_ARTIFACTS="s3://rd3-nowhere/x")
    assert "has no bucket 'rd3-nowhere'." in said
    assert "Fix: run `rd3 infra init`, or set RD3_ARTIFACTS to another" in said


def test_an_s3_server_that_is_down(refused, closed_port: int):
    said = refused(AWS_ENDPOINT_URL=f"http://127.0.0.1:{closed_port}")
    assert f"The S3 server http://127.0.0.1:{closed_port} does not respond" in said
    assert "correct AWS_ENDPOINT_URL" in said


def test_the_bucket_is_made_once_and_checked(driver: Stack, monkeypatch: pytest.MonkeyPatch, capsys):
    bucket = f"rd3-{uuid.uuid4().hex}"
    monkeypatch.setenv("RD3_ARTIFACTS", f"s3://{bucket}/project")
    monkeypatch.setattr(sys, "argv", ["rd3", "infra", "init"])
    said = []
    for _time in range(2):
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        said.append(capsys.readouterr().out.splitlines())
    assert said[0][0] == f"{bucket}: created"
    assert said[1] == [f"{bucket}: exists", *said[0][1:]]
    assert f"{bucket}: this server does not support the public access block (NotImplemented)" in said[0]
    assert f"{bucket}: cannot be read without credentials" in said[0]
    assert said[0][-1] == f"s3://{bucket}/project: write, read, conditional write, list and delete work"
    assert list(open_objects(f"s3://{bucket}").names()) == []


class Ahead:
    """A clock that is so many seconds ahead."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def time(self) -> float:
        return time.time() + self.seconds


def test_a_clock_that_would_break_the_lease(refused, driver: Stack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(s3, "time", Ahead(45.0))
    said = refused()
    server = driver.env["AWS_ENDPOINT_URL"]
    told = rf"StoreError: The clock of this machine is \d\d s ahead of that of the S3 server {server}\."
    assert re.match(told, said), said
    assert "set the clock (NTP)" in said


def test_a_clock_with_which_nothing_can_be_signed(refused, monkeypatch: pytest.MonkeyPatch):
    def late(remove_tzinfo: bool = True) -> datetime.datetime:
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=20)
        return now.replace(tzinfo=None) if remove_tzinfo else now

    monkeypatch.setattr(botocore.auth, "get_current_datetime", late)
    said = refused()
    assert "its clock and ours differ by minutes (RequestTimeTooSkewed)" in said
    assert "set the clock (NTP)" in said
    monkeypatch.undo()


ALTER = """
import json, sys
from ray._private import ray_constants
from ray._raylet import GcsClient

gcs = GcsClient(address=sys.argv[1])
key, space = b"CLUSTER_METADATA", ray_constants.KV_NAMESPACE_CLUSTER
known = json.loads(gcs.internal_kv_get(key, namespace=space))
known["ray_version"], known["python_version"] = sys.argv[2], sys.argv[3]
gcs.internal_kv_put(key, json.dumps(known).encode(), True, namespace=space)
"""


@pytest.mark.platform
class TestCluster:
    """Each in a process of its own: Ray reads its variables once."""

    @pytest.fixture
    def refused(self, stack: Stack, root: str, grid: str, tmp_path: Path) -> Callable[..., str]:
        def run(address: str = stack.env["RAY_ADDRESS"], **changed: str | None) -> str:
            wanted = os.environ | stack.env | {"RD3_ARTIFACTS": root, "RD3_HOME": str(tmp_path / "home")} | changed
            env = {name: value for name, value in wanted.items() if value is not None}
            command = [sys.executable, "-m", "pipelines.cli", "run", grid, "--address", address]
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            return done.stderr

        return run

    def test_a_cluster_that_is_not_there(self, refused, closed_port: int):
        said = refused(f"127.0.0.1:{closed_port}")
        assert (
            f"The Ray cluster at 127.0.0.1:{closed_port} does not respond: Connection refused.\nFix: start it, " in said
        )

    def test_the_port_of_the_dashboard(self, refused, stack: Stack):
        address = stack.env["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
        assert f"The server at {address} is not the head of a Ray cluster." in refused(address)

    def test_no_token(self, refused, tmp_path: Path):
        said = refused(RAY_AUTH_TOKEN_PATH=None, HOME=str(tmp_path))
        assert "No usable token for the Ray cluster at" in said
        assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in said

    def test_another_token(self, refused):
        said = refused(RAY_AUTH_TOKEN_PATH=None, RAY_AUTH_TOKEN="0123456789abcdef" * 3)
        assert "refused the connection." in said
        assert "0123456789abcdef" not in said

    def test_another_ray(self, refused, stack: Stack):
        import platform

        import ray

        ours = (ray.__version__, platform.python_version())
        alter = [sys.executable, "-c", ALTER, stack.env["RAY_ADDRESS"]]
        subprocess.run([*alter, "2.50.0", "3.10.4"], env=os.environ | stack.env, check=True)
        try:
            said = refused()
        finally:
            subprocess.run([*alter, *ours], env=os.environ | stack.env, check=True)
        assert f"runs Ray 2.50.0 and Python 3.10.4, this machine Ray {ours[0]} and Python {ours[1]}." in said


@pytest.mark.platform
class TestDoctor:
    @pytest.fixture
    def doctor(self, stack: Stack, tmp_path: Path) -> Callable[..., tuple[int, dict[str, tuple[str, str]]]]:
        def run(**changed: str) -> tuple[int, dict[str, tuple[str, str]]]:
            env = os.environ | stack.env | {"RD3_HOME": str(tmp_path / "home")} | changed
            command = [sys.executable, "-m", "pipelines.cli", "doctor", "--json"]
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
            return done.returncode, {row["what"]: (row["state"], row["detail"]) for row in json.loads(done.stdout)}

        return run

    def test_all_is_well(self, doctor):
        code, rows = doctor()
        assert code == 0
        own = {name for name in rows if "data " in name} | {
            "device"
        }  # these depend on the machine, not on the platform
        assert {state for name, (state, _detail) in rows.items() if name not in own} == {"ok"}
        there = {name.removeprefix("worker 127.0.0.3: ") for name in rows if name.startswith("worker 127.0.0.3: ")}
        assert {"clock", "python", "ray", "rd3", "ray token", "disk", "tracking", "files through tracking"} <= there
        assert {"s3", "data digits"} <= there
        assert {"tracking", "files through tracking", "ledger", "clock", "ray cluster"} <= set(rows)

    def test_each_wrong_row_names_what_to_set(self, doctor, closed_port: int):
        code, rows = doctor(
            MLFLOW_TRACKING_PASSWORD="wrong", AWS_SECRET_ACCESS_KEY="wrong", RAY_ADDRESS=f"127.0.0.1:{closed_port}"
        )
        assert code == 3
        wrong = {name: detail for name, (state, detail) in rows.items() if state == "wrong" and "data" not in name}
        assert set(wrong) == {"tracking", "ledger", "clock", "ray cluster"}
        assert "MLFLOW_TRACKING_PASSWORD" in wrong["tracking"]
        assert "AWS_SECRET_ACCESS_KEY" in wrong["ledger"]
        assert "--address" in wrong["ray cluster"]

    def test_a_worker_sees_what_the_driver_does_not(self, doctor, stack: Stack):
        code, rows = doctor(MLFLOW_TRACKING_PASSWORD="wrong")
        assert code == 3
        assert rows["tracking"][0] == "wrong"
        assert rows["worker 127.0.0.3: tracking"][0] == "ok", "it has a password of its own"
