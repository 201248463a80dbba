"""The stack itself: what it holds outlives a crash of any part, and nobody gets in without a password."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import grpc
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from rd3.errors import StoreError
from tracking.ledger.object_store import open_objects
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.upkeep.health import probe_artifacts

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = [pytest.mark.integration, pytest.mark.platform, pytest.mark.timeout(1800)]

ASK = "/api/2.0/mlflow/experiments/search?max_results=1"
NOBODY = 65534
PUBLIC = {"/", "/api/local_raylet_healthz"}
"""Ray's dashboard without any data, and whether a node lives."""
PARTS = ("postgres", "s3", "mlflow", "ray-head", "ray-worker")
# What each port of Ray's that is open on every interface can be asked for.
SERVICES = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
)


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ON_EVERY_NODE = """
import json, os, sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
answer, sys.stdout = sys.stdout, sys.stderr  # Ray prints what it notices of other nodes
ray.init(os.environ["RAY_ADDRESS"], logging_level="CRITICAL", log_to_driver=False)
look = ray.remote(num_cpus=1)(lambda: (ray.util.get_node_ip_address(), dict(os.environ)))
def asked():
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    tasks = [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    return dict(ray.get([task.remote() for task in tasks], timeout=60))
seen, deadline = {}, time.monotonic() + 300
while len(seen) != 2 and time.monotonic() < deadline:
    try:
        seen = asked()
    except ray.exceptions.RayError as error:  # a node that was killed counts as alive for some seconds
        print(error)
    time.sleep(1)
print(json.dumps(seen), file=answer, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def in_ray(stack: Stack) -> Iterator[dict[str, dict[str, str]]]:
    """A process of ours on every node of the cluster, by the node's address: its environment."""
    command = [sys.executable, "-c", ON_EVERY_NODE]
    with subprocess.Popen(
        command, env=os.environ | stack.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        yield json.loads(driver.stdout.readline())
        driver.communicate()


def place_of(env: dict[str, str], home: Path) -> Place:
    return Place(env["MLFLOW_TRACKING_URI"], env["RD3_ARTIFACTS"], home)


def test_what_is_kept_outlives_a_crash_of_every_part(stack: Stack, driver: Stack, tmp_path: Path):
    secrets = stack.do("env")
    experiment = Tracker(place_of(stack.env, tmp_path)).experiment("outlives")
    objects = open_objects(stack.env["RD3_ARTIFACTS"])
    objects.put("outlives.txt", b"kept")
    for part in PARTS:
        lost = stack.pids(part)
        assert lost
        stack.do("kill", part)
        assert not stack.pids(part)
        assert not any(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in lost if Path(f"/proc/{pid}").exists())
        assert stack("status", part).returncode == 1
        stack.do("start")
        assert stack.do("status").count(" up ") == len(PARTS)
    assert stack.do("start") == "", "what runs is left alone"
    assert stack.do("env") == secrets
    assert Tracker(place_of(stack.env, tmp_path)).experiment("outlives") == experiment
    assert objects.get("outlives.txt") == b"kept"
    probe_artifacts(place_of(stack.env, tmp_path))


def test_files_that_hold_secrets_are_for_their_owner_alone(servers: Stack):
    for path in (servers.home / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    for folder in ("secrets", "run", "log", "s3", "postgres"):
        assert (servers.home / folder).stat().st_mode & 0o077 == 0, folder


def test_no_secret_is_in_a_command_line_or_a_log(stack: Stack):
    files = [
        path
        for path in (stack.home / "secrets").iterdir()
        if path.name not in ("pgpass", "basic_auth.ini", "driver.env")
    ]
    secrets = {path.name: path.read_bytes() for path in files}
    assert len(secrets) == 7
    seen = [(path, path.read_bytes()) for path in (stack.home / "log").iterdir()]
    for part in PARTS:
        seen += [(path, path.read_bytes()) for pid in stack.pids(part) for path in Path(f"/proc/{pid}").glob("cmdline")]
    assert [(str(path), name) for path, text in seen for name, secret in secrets.items() if secret in text] == []


def test_the_tracking_server_wants_the_password_and_its_own_name(servers: Stack):
    uri, user = servers.env["MLFLOW_TRACKING_URI"], servers.env["MLFLOW_TRACKING_USERNAME"]
    right = basic(user, servers.env["MLFLOW_TRACKING_PASSWORD"])
    assert status_of(uri + ASK) == 401
    assert status_of(uri + ASK, Authorization=basic(user, "wrong")) == 401
    assert status_of(uri + ASK, Authorization=basic("admin", "password1234")) == 401
    assert status_of(uri + ASK, Authorization=right) == 200
    assert status_of(uri + ASK, Authorization=right, Host="evil.example") == 403


def test_the_user_of_trials_is_no_admin(servers: Stack):
    uri, user = servers.env["MLFLOW_TRACKING_URI"], servers.env["MLFLOW_TRACKING_USERNAME"]
    admin = basic("admin", (servers.home / "secrets" / "mlflow-admin").read_text())
    ask = f"{uri}/api/2.0/mlflow/users/get?username=admin"
    assert status_of(ask, Authorization=admin) == 200
    assert status_of(ask, Authorization=basic(user, servers.env["MLFLOW_TRACKING_PASSWORD"])) == 403


def test_objects_want_a_signature(driver: Stack):
    objects = open_objects(driver.env["RD3_ARTIFACTS"])
    objects.put("signed.txt", b"secret")
    anonymous = boto3.client("s3", config=Config(signature_version=UNSIGNED))
    for ask in (
        lambda: anonymous.get_object(Bucket="rd3", Key="rd3/signed.txt"),
        lambda: anonymous.list_objects_v2(Bucket="rd3"),
        lambda: anonymous.put_object(Bucket="rd3", Key="rd3/anonymous.txt", Body=b""),
    ):
        with pytest.raises(ClientError) as refused:
            ask()
        assert 400 <= refused.value.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    assert objects.get("signed.txt") == b"secret"
    assert objects.get("anonymous.txt") is None


def test_trials_hold_a_password_of_the_tracking_server_and_no_key_of_the_objects(stack: Stack):
    with in_ray(stack) as seen:
        pass
    assert set(seen) == {"127.0.0.2", "127.0.0.3"}
    for names in seen.values():
        assert not [name for name in names if name.startswith("AWS_")]
        assert names["MLFLOW_TRACKING_USERNAME"] == "rd3"
        assert names["MLFLOW_TRACKING_PASSWORD"] == stack.env["MLFLOW_TRACKING_PASSWORD"]


def listening(pids: set[int]) -> list[tuple[str, int]]:
    """(address, port) of every socket on which these processes wait for TCP connections, from the kernel's table."""
    own = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                own.add(str(descriptor.readlink()))
            except OSError:  # closed, or its process ended
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                address, port = fields[1].split(":")
                # IPv4, or IPv4 within IPv6: the last four bytes, lowest first.
                last = ".".join(str(byte) for byte in reversed(bytes.fromhex(address[-8:])))
                found.append((last, int(port, 16)))
    return found


def test_nothing_is_open_to_the_network_but_what_ray_opens_and_that_wants_the_token(stack: Stack):
    open_to_all = set()
    with in_ray(stack):  # so that processes of trials listen as well
        for part in PARTS:
            sockets = listening(stack.pids(part))
            assert sockets, part
            outside = {port for address, port in sockets if not address.startswith("127.")}
            assert not outside or part.startswith("ray-"), f"{part} listens on {outside}"
            open_to_all |= outside
        # Head: 4 of its services.  Worker: 3.  A process on each.  Should Ray learn to be told an interface, tell it.
        assert len(open_to_all) >= 9
        for port in open_to_all:
            assert grpc.StatusCode.UNAUTHENTICATED in answers(port) or not is_open(port), port


def test_no_port_of_the_stack_answers_another_user_without_a_password(stack: Stack):
    if os.geteuid():
        pytest.skip("another user's processes can be started by root alone")
    with in_ray(stack):
        ports = {f"{'127.0.0.1' if address == '0.0.0.0' else address}:{port}": part
                 for part in PARTS for address, port in listening(stack.pids(part))}  # fmt: skip
        asked = subprocess.run(
            [sys.executable, Path(__file__).with_name("probe.py"), str(NOBODY), *ports],
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    for address, answers in json.loads(asked.stdout).items():
        part, codes = ports[address], set(answers.values())
        given = {path for path, code in answers.items() if code in ("200", "OK")}
        assert given <= PUBLIC, (part, address, given)
        wanted = {"401", "403", "UNAUTHENTICATED"} if part != "postgres" else {"no HTTP"}
        assert codes & wanted, (part, address, codes)


def is_open(port: int) -> bool:
    """Whether somebody still listens; a worker that was idle may have ended since it was seen."""
    with socket.socket() as caller:
        caller.settimeout(5)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int) -> list[grpc.StatusCode]:
    """How a port takes each kind of question that has no token; it must answer none."""
    codes = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service in SERVICES:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(service)(b"", timeout=20)
            codes.append(refused.value.code())
    return codes


def test_the_jobs_of_ray_want_the_token(stack: Stack):
    jobs = stack.env["RAY_API_SERVER_ADDRESS"] + "/api/jobs/"
    token = Path(stack.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert status_of(jobs) == 401
    assert status_of(jobs, Authorization="Bearer " + "0" * len(token)) in (401, 403)
    assert status_of(jobs, Authorization=f"Bearer {token}") == 200


def test_a_second_stack_cannot_take_the_ports_of_the_first(servers: Stack, tmp_path: Path):
    other = type(servers)(tmp_path / "other", servers.port)
    refused = other("start", "s3")
    assert refused.returncode == 1
    assert "s3 cannot have port" in refused.stderr
    assert "Fix: set STACK_PORT" in refused.stderr
    assert other("wipe").returncode == 0
    assert not other.home.exists()


def test_a_part_that_does_not_start_says_its_last_words(servers: Stack, tmp_path: Path):
    """A database whose folder is empty."""
    other = type(servers)(tmp_path / "other", servers.port + 3)
    (other.home / "postgres" / "data").mkdir(parents=True)
    failed = other("start", "postgres")
    assert failed.returncode == 1
    assert f"postgres did not come up; the last lines of {other.home}/log/postgres.log:" in failed.stderr
    assert "could not access" in failed.stderr
    assert other("wipe").returncode == 0


def test_a_part_that_does_not_exist(servers: Stack):
    refused = servers("start", "minio")
    assert refused.returncode == 2
    assert "there is no part 'minio'; there are postgres, s3, mlflow, ray-head, ray-worker" in refused.stderr


def test_secrets_can_be_changed(stack: Stack, driver: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The last test here: whoever comes later reads the environment again."""
    objects = open_objects(stack.env["RD3_ARTIFACTS"])
    objects.put("before.txt", b"kept")
    before = dict(stack.env), Path(stack.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    experiment = Tracker(place_of(stack.env, tmp_path)).experiment("before")
    stack.do("stop")
    for name in ("s3", "ray-token", "mlflow-user", "mlflow-flask", "postgres-mlflow"):
        (stack.home / "secrets" / name).unlink()
    stack.do("start")
    stack.read_env()
    stack.reach(monkeypatch)
    old, old_token = before
    jobs, asked = stack.env["RAY_API_SERVER_ADDRESS"] + "/api/jobs/", stack.env["MLFLOW_TRACKING_URI"] + ASK
    assert status_of(asked, Authorization=basic("rd3", old["MLFLOW_TRACKING_PASSWORD"])) == 401
    assert status_of(asked, Authorization=basic("rd3", stack.env["MLFLOW_TRACKING_PASSWORD"])) == 200
    assert status_of(jobs, Authorization=f"Bearer {old_token}") in (401, 403)
    assert open_objects(stack.env["RD3_ARTIFACTS"]).get("before.txt") == b"kept"
    with pytest.raises(StoreError, match="SignatureDoesNotMatch"):
        objects.get("before.txt")  # a client that still has the old key
    assert Tracker(place_of(stack.env, tmp_path)).experiment("before") == experiment
    probe_artifacts(place_of(stack.env, tmp_path))
