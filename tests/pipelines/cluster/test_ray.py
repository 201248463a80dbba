"""Why a Ray cluster cannot be joined: told in one sentence, and at once."""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from pipelines.cluster import local
from pipelines.cluster.ray import _not_started, _own_token, _start, check_address, not_joined, ray_cluster
from rd3.errors import RD3Error

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """Starts servers that say the same to everybody."""
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            asked, _who = listener.accept()
            with asked:
                asked.recv(100)
                asked.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def test_what_speaks_http_2_may_be_a_cluster(serve):
    check_address(serve(SETTINGS))


def test_words_that_ray_resolves_are_left_to_it():
    check_address("auto")
    check_address("local")


def test_ray_client_is_refused_before_it_is_called(monkeypatch: pytest.MonkeyPatch):
    """With it, Ray Tune pickles the driver and fails inside a task (ray#20379)."""
    address = "ray://127.0.0.1:10001"
    fix = r"--address auto on a node of the cluster, or from elsewhere: rd3 submit GRID --address http://127\.0\.0\.1:8265"
    with pytest.raises(RD3Error, match=rf"^{address} is an address of Ray Client, .*{fix}"):
        check_address(address)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(RD3Error, match=r"^ray://head:10001 is an address of Ray Client"), ray_cluster("auto"):
        pass


def test_a_process_that_is_connected_by_ray_client(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    with pytest.raises(RD3Error, match=r"connected to a cluster by Ray Client.*call ray\.shutdown\(\)"), ray_cluster():
        pass


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_another_server(serve, answer: bytes):
    address = serve(answer)
    with pytest.raises(RD3Error, match=rf"The server at {address} is not the head of a Ray cluster\. Fix: use the"):
        check_address(address)


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "a..b:6379", "localhost:²"])
def test_a_host_that_does_not_exist(address: str):
    with pytest.raises(RD3Error, match=rf"The Ray cluster at {re.escape(address)} does not respond: "):
        check_address(address)


def test_other_versions():
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.10.4\n"
        "This process on node was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    assert str(not_joined("head:6379", RuntimeError(said))).startswith(
        "The Ray cluster at head:6379 runs Ray 2.50.0 and Python 3.10.4, this machine Ray 2.60.0 and Python 3.11.7. "
        "Fix: install the same versions"
    )


def test_no_token_and_the_wrong_one():
    missing = not_joined("head:6379", AuthenticationError("No token was found. Ensure that"))
    assert missing.message == "No usable token for the Ray cluster at head:6379: No token was found."
    refused = not_joined("head:6379", ConnectionError("Failed to connect to Ray cluster at head:6379"))
    assert refused.message == "The Ray cluster at head:6379 refused the connection."
    assert {missing.fix, refused.fix} == {
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    }


def test_anything_else_is_told_by_its_first_line():
    told = not_joined("head:6379", RuntimeError("Something new.\nand a page of it"))
    assert told.message == "Cannot join the Ray cluster at head:6379: Something new."


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("AF_UNIX path length cannot exceed 107 bytes: /a/very/long/path", "TMPDIR to a short path"),
        ("[Errno 28] No space left on device", "free space"),
        ("ValueError: Attempting to cap object store memory usage at 1 bytes, /dev/shm has 64 MB", "--shm-size"),
        ("RuntimeError: [Errno 98] Address already in use", "ray stop"),
        ("RuntimeError: can't start new thread", "ulimit -u"),
        ("[Errno 13] Permission denied: '/tmp/x'", "TMPDIR and HOME"),
        ("The current node timed out during startup.", "less busy"),
    ],
)
def test_the_fix_for_a_ray_that_cannot_start(text: str, fix: str):
    error = _not_started(RuntimeError(text + "\nmore lines"))
    assert error.message == f"Cannot start Ray on this machine: {text}"
    assert fix in error.fix


def test_a_process_of_a_failed_start_may_end_before_it_is_killed(monkeypatch: pytest.MonkeyPatch):
    children = iter([set(), {1234}])
    monkeypatch.setattr(local, "children", lambda _process: next(children))

    def kill(_process: int, _signal: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)

    def init(**_options: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RD3Error, match="Cannot start Ray on this machine: No space left on device"):
        _start(_not_started)


def test_a_process_whose_ray_has_died_starts_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "_lost", ["raylet"])
    with pytest.raises(local.RayDied, match="its raylet has died") as caught, ray_cluster():
        pass
    assert "restart Python" in caught.value.fix


def test_a_cluster_of_this_process_has_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not the one in HOME, which Ray creates readable for everybody."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with _own_token(tmp_path):
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does when it starts
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == tmp_path and len(token.read_text()) == 64
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert not {"RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"} & set(os.environ)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    with _own_token(tmp_path):
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setattr(local, "_lost", ["gcs_server"])
    (tmp_path / "lost").mkdir()
    with _own_token(tmp_path / "lost"):
        pass
    assert os.environ.pop("RAY_AUTH_TOKEN_PATH") == str(tmp_path / "lost" / "token")
