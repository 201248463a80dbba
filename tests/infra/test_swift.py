"""The development S3 server's script, with processes that sleep in place of Swift's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "infra" / "s3" / "swift.sh"
SERVERS = ("account", "container", "object", "proxy")


def test_a_second_start_leaves_running_servers_to_a_later_stop(tmp_path: Path) -> None:
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    stubs = {f"swift-{server}-server": 'exec -a "$0" sleep 60' for server in SERVERS}
    for name, body in (stubs | {"swift-ring-builder": "true", "curl": "true"}).items():
        (binaries / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (binaries / name).chmod(0o755)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"S3_HOME": str(tmp_path / "s3"), "S3_VENV": str(binaries.parent), "PATH": path}

    def run(word: str) -> str:
        return subprocess.run([SCRIPT, word], env=env, check=True, capture_output=True, text=True, timeout=60).stdout

    def numbers() -> dict[str, int]:
        return {server: int((tmp_path / "s3" / "run" / f"{server}.pid").read_text()) for server in SERVERS}

    try:
        run("start")
        first = numbers()
        run("start")
        assert numbers() == first
        os.kill(first["object"], 9)
        run("start")
        again = numbers()
        assert [server for server in SERVERS if again[server] != first[server]] == ["object"]
        assert run("status").split() == [word for server in sorted(SERVERS) for word in (server, "up")]
    finally:
        run("stop")
    assert run("status") == ""


def test_a_secret_comes_out_of_the_shell_as_it_went_in() -> None:
    env = os.environ | {"AWS_SECRET_ACCESS_KEY": "a $HOME 'b' \"c\"; d"}
    words = f'eval "$({SCRIPT} env)"; printf %s "$AWS_SECRET_ACCESS_KEY"'
    done = subprocess.run(["bash", "-c", words], env=env, check=True, capture_output=True, text=True)
    assert done.stdout == env["AWS_SECRET_ACCESS_KEY"]
