"""Users without a home, caches and folders that cannot be written: real processes that work, or say what to set."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRID = """
name: tiny
methods: [random]
datasets: [digits]
ipc: [1]
teacher: resnet18_w16
students: [convnet_w32]
protocols: [rd3-reduced]
protocol: {labels: hard, epochs: 2, precision: fp32}
set_seeds: [0]
student_seeds: [0]
"""
CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR")
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *(
    f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")
))  # fmt: skip
"""Runs a command as a user ID without an account, which may read all files, the interpreter too."""
as_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
needs_namespaces = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the stranger, with a grid; not pytest's own, which other users may not enter."""
    with tempfile.TemporaryDirectory(prefix="rd3-") as name:
        (Path(name) / "tiny.yaml").write_text(GRID)
        if os.geteuid() == 0:
            os.chown(name, 54321, 54321)
        yield Path(name)


@pytest.fixture(params=["unset", "missing", "below a file"])
def env(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    """An environment with such a HOME, and with caches where nothing can be created."""
    (folder / "file").write_text("")
    left_out = (
        "HOME",
        "RD3_ARTIFACTS",
        "MLFLOW_TRACKING_URI",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    )
    given = {name: value for name, value in os.environ.items() if name not in left_out}
    homes = {"missing": {"HOME": "/proc/no/home"}, "below a file": {"HOME": str(folder / "file" / "home")}}
    own = {"RD3_HOME": str(folder / "rd3"), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return given | homes.get(request.param, {}) | own | {name: str(folder / "file" / name) for name in CACHES}


def run(env: dict[str, str], *words: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``python -m`` these words, in RD3_HOME's folder."""
    command = [*before, sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, env=env, cwd=Path(env["RD3_HOME"]).parent, capture_output=True, text=True)


def test_commands_need_no_home_of_the_user(env: dict[str, str], folder: Path) -> None:
    grid, recipes, store = folder / "tiny.yaml", folder / "recipes", folder / "store"
    commands = [
        ("pipelines.cli", "list", "grids"),
        ("pipelines.cli", "plan", grid, "--recipes", recipes),
        ("rd3.run", recipes, "--store", store, "--out", store),
        ("pipelines.cli", "run", grid, "--local"),
        ("pipelines.cli", "report", grid),
    ]
    for words in commands:
        done = run(env, *words)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (words, done.stderr)
    assert not any(line in done.stderr for line in ("matplotlib", "HOME"))


@as_root
def test_nor_do_they_need_an_account(folder: Path) -> None:
    keep = ("PATH", "LANG", "RD3_DATA", "OMP_NUM_THREADS")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env |= {"RD3_HOME": str(folder / "rd3"), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for words in (("run", folder / "tiny.yaml", "--local"), ("report", folder / "tiny.yaml"), ("doctor",)):
        done = run(env, "pipelines.cli", *words, before=STRANGER)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "matplotlib" not in done.stderr


@as_root
def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    folder.chmod(0o555)
    os.chown(folder, 0, 0)
    env = dict(os.environ) | {"RD3_HOME": str(folder / "rd3"), "PYTHONPATH": str(ROOT), "HOME": "/"}
    grid = folder / "tiny.yaml"
    done = run(env, "pipelines.cli", "run", grid, before=STRANGER)
    assert (done.returncode, done.stderr) == (
        2,
        f"BadValue: RD3's home {folder}/rd3 cannot be written: no permission to write to {folder}.\n"
        "Fix: set RD3_HOME to a writable folder\n",
    )
    done = run(env, "pipelines.cli", "report", grid, before=STRANGER)
    assert (done.returncode, done.stderr) == (
        2,
        f"StoreError: Cannot write the report to {folder}/rd3/reports/tiny: Permission denied.\n"
        "Fix: choose another folder (--out)\n",
    )
    done = run(env, "pipelines.cli", "plan", grid, before=STRANGER)
    assert (done.returncode, done.stderr) == (0, ""), "a plan writes nothing that must be kept"


@as_root
def test_the_home_of_a_colleague_whose_files_the_group_may_only_read(folder: Path) -> None:
    """A group folder in which the first user had umask 022; then as the message says, with umask 002 from there on."""
    env = dict(os.environ) | {"RD3_HOME": str(folder / "rd3"), "PYTHONPATH": str(ROOT), "HOME": "/"}
    grid = folder / "tiny.yaml"
    done = run(env, "pipelines.cli", "run", grid, "--local")
    assert done.returncode == 0, done.stderr
    home = folder / "rd3"
    for path in (home, *home.rglob("*")):
        os.chown(path, 0, 54321)
        path.chmod(0o2775 if path.is_dir() else 0o644)
    grid.write_text(grid.read_text().replace("student_seeds: [0]", "student_seeds: [0, 1]"))
    done = run(env, "pipelines.cli", "run", grid, "--local", before=STRANGER)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"BadValue: There is no permission to write to {home}/mlflow.db and {home}/trials.jsonl, which root owns.\n"
        f"Fix: set RD3_HOME to a folder of your own; or let the owner share it with your group: chmod -R g+rwX {home}, "
    ), done.stderr
    subprocess.run(["chmod", "-R", "g+rwX", home], check=True)
    done = run(env, "pipelines.cli", "run", grid, "--local", before=STRANGER)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "~"])
def test_a_home_in_a_path_that_cannot_be_found(folder: Path, name: str) -> None:
    env = dict(os.environ) | {"RD3_HOME": str(folder / "rd3"), "RD3_DATA": name, "PYTHONPATH": str(ROOT)}
    before: tuple[str, ...] = ()
    if name == "~":
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            pytest.skip("needs root and setpriv")
        del env["HOME"]
        before = STRANGER
    done = run(env, "pipelines.cli", "plan", folder / "tiny.yaml", before=before)
    assert (done.returncode, done.stderr) == (
        2, f"BadValue: RD3_DATA is {name}, and there is no such home folder.\nFix: write RD3_DATA without '~'\n",
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
def test_too_little_memory_for_torch_is_one_sentence(folder: Path) -> None:
    """1 GiB of address space: Python and pydantic fit, torch's libraries do not."""
    env = dict(os.environ) | {"RD3_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    shutil.rmtree(folder / "home", ignore_errors=True)
    words = [sys.executable, "-m", "pipelines.cli", "run", str(folder / "tiny.yaml"), "--local"]
    command = ["sh", "-c", f"ulimit -v 1048576; exec {shlex.join(words)}"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    said, fix = done.stderr.splitlines()[-2:]
    assert done.returncode == 2 and said.endswith(".so cannot be loaded: this process may not use enough memory.")
    assert fix.startswith("Fix: raise its limit (ulimit -v") and "Traceback" not in done.stderr


@needs_namespaces
def test_temporary_folders_that_are_all_full(folder: Path) -> None:
    """In a mount namespace of its own, with a full disk at each place that Python tries, and the command in one."""
    env = dict(os.environ) | {"RD3_HOME": "/dev/shm/rd3", "PYTHONPATH": str(ROOT)}
    env.pop("TMPDIR", None)
    full = "for place in /var/tmp /usr/tmp /tmp; do [ ! -d $place ] || { mount -t tmpfs -o size=64k tmpfs $place && "
    full += "head -c 100k /dev/zero > $place/fill 2>/dev/null; }; done; mount -t tmpfs tmpfs /dev/shm; "
    full += f"echo '{GRID}' > /dev/shm/tiny.yaml; cd /tmp; "
    for words in (
        "pipelines.cli run /dev/shm/tiny.yaml",
        "pipelines.cli plan /dev/shm/tiny.yaml",
        "pipelines.cli doctor",
    ):
        command = ["unshare", "--mount", "sh", "-c", f"{full} exec {sys.executable} -m {words}"]
        done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("StoreError: Temporary files cannot be written: each of ['/tmp', '/var/tmp', ")
        assert done.stderr.endswith("\nFix: free space there, or set TMPDIR to a folder that can be written\n")
        assert done.stderr.count("\n") == 2
