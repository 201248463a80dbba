"""A Ray head of its own with token authentication and an open Jobs API, beside whatever else runs on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """A running head: what its clients need."""

    url: str
    """Of the dashboard and the Jobs API."""
    env: dict[str, str]
    """Lets a process in: the token's file."""
    log: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def ray_head(cpus: int = 2, ip: str = "127.0.0.4", **env: str) -> Iterator[Head]:
    """Start a head on a loopback address and end every process of it; ``env``: what its workers have."""
    folder = Path(tempfile.mkdtemp(prefix="rd3h"))  # Ray's sockets need a short path
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    head, dashboard, agent, agent_grpc, runtime_env, metrics, manager, objects = free_ports(8)
    authenticated = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env}  # a job says `python`
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--node-ip-address={ip}",
        f"--port={head}", f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}", "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}", f"--node-manager-port={manager}", f"--object-manager-port={objects}",
        "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "head.log"
    with open(log, "wb") as said:
        started = subprocess.Popen(
            command,
            env=os.environ | authenticated | env,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(url, token.read_text(), started, log)
        yield Head(url, authenticated, log)
    finally:
        _end(started, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, token: str, started: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError as error:
            if started.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the Ray head did not come up ({error}): {log.read_text()[-2000:]}") from None
            time.sleep(0.5)


def _end(started: subprocess.Popen, folder: Path) -> None:
    """End the head and whatever of it stays; its processes all name its folder."""
    started.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(20)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                str(folder).encode()
                in process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
            ):
                os.kill(int(process.name), signal.SIGKILL)
    started.kill()
    started.wait()
