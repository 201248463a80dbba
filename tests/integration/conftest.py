"""Real servers for the tests: a stack of ``infra/stack`` in a folder and on ports of its own, once a test process.

Swift's own environment is installed once into ``$RD3_TEST_CACHE`` (default: below the temporary folder).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "stack" / "stack.sh"
PORTS = 200


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses real servers belongs to the platform's tests."""
    for item in items:
        if "servers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.platform)


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """``tiny_grid.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("tiny_grid", Path(__file__).with_name("tiny_grid.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Stack:
    """A stack of its own; ``env`` is what a driver has to set."""

    home: Path
    port: int
    env: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> dict[str, str]:
        ours = {"STACK_HOME": str(self.home), "STACK_PORT": str(self.port), "STACK_PYTHON": sys.executable}
        return os.environ | ours | {"S3_VENV": str(_cache() / "swift"), "PYTHONPATH": str(ROOT)}

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command of ``stack.sh``; whether it succeeds is for the caller to see."""
        return subprocess.run([SCRIPT, *words], env=self.own, capture_output=True, text=True, check=False)

    def do(self, *words: str) -> str:
        """One command of ``stack.sh`` that must succeed; what it says."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pids(self, part: str) -> set[int]:
        """The processes of a part."""
        return {int(word) for word in self.do("pids", part).split()}

    def start(self, *parts: str) -> None:
        """Start parts, by default all.  In CI one that does not start is a failure, elsewhere the tests are skipped."""
        started = self("start", *parts)
        if started.returncode:
            why = f"the stack did not start: {started.stderr.strip()}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(why)

    def read_env(self) -> None:
        """Learn what a driver has to set; nothing of the user's own may leak in."""
        said = (line.removeprefix("export ") for line in self.do("env").splitlines())
        self.env.update(shlex.split(line)[0].split("=", 1) for line in said)
        self.env.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)

    def reach(self, patch: pytest.MonkeyPatch) -> None:
        """Make this process a driver of the stack, and of nothing else that its user has."""
        for name in ("AWS_PROFILE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in self.env.items():
            patch.setenv(name, value)


def _cache() -> Path:
    cache = Path(os.environ.get("RD3_TEST_CACHE") or Path(tempfile.gettempdir()) / "rd3-test-cache")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _free_ports() -> int:
    """The first of as many free ports as a stack takes."""
    for first in range(21000 + os.getpid() % 40 * 200, 32000 - PORTS, PORTS):
        with contextlib.suppress(OSError):
            for port in range(first, first + PORTS):
                socket.create_server(("", port)).close()
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def servers() -> Iterator[Stack]:
    """PostgreSQL, S3 with its bucket, and the tracking server."""
    # Not pytest's own folder, which the database's user may not pass through.
    with tempfile.TemporaryDirectory(prefix="rd3-", ignore_cleanup_errors=True) as folder:
        made = Stack(Path(folder) / "stack", _free_ports())
        Path(folder).chmod(0o711)
        try:
            with open(_cache() / "swift.lock", "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the first test process installs it
                made.start("s3")
            made.start("postgres", "mlflow")
            made.read_env()
            prepare = [sys.executable, "-m", "pipelines.cli", "infra", "init"]
            subprocess.run(prepare, cwd=ROOT, env=made.own | made.env, check=True, stdout=subprocess.DEVNULL)
            yield made
        finally:
            made("wipe")


@pytest.fixture(scope="session")
def stack(servers: Stack) -> Stack:
    """The same with a Ray cluster of a head and a worker."""
    servers.start("ray-head", "ray-worker")
    return servers


@pytest.fixture
def driver(servers: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stack:
    """This process as a driver of the servers, with an empty home."""
    servers.reach(monkeypatch)
    monkeypatch.setenv("RD3_HOME", str(tmp_path / "home"))
    return servers
