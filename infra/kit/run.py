#!/usr/bin/env python3
"""On a machine without network: tests marked `cuda`, benchmarks, then recipes until the minutes end.

    python3 infra/kit/run.py --minutes 9 --out $OUT

Works with the kit that `pack.py` made, and needs nothing but Python and torch.  What it leaves in --out is whole at
any moment: `log.txt` from the first second, and `results-*.zip` for `rd3 import-results`.  Called again, it goes on.
See docs/offline.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rd3.parts import Collector

ROOT = Path(__file__).resolve().parents[2]
LOG_BYTES = 15_000_000
COLLECT_EVERY_S = 5.0
RESERVE_S = 15.0
"""Kept for the last collection."""
PATIENCE_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""
TESTS = (60.0, 0.1)
BENCHMARKS = (120.0, 0.2)
"""Most seconds of the step, and its largest fraction of --minutes."""
PACKAGES = "torch torchvision timm numpy scipy scikit-learn pyarrow safetensors pydantic pydantic-core pyyaml pytest"


class Log:
    """Writes lines with their time to the screen and to a file, without delay."""

    def __init__(self, path: Path):
        self._begun, self._size = time.monotonic(), 0
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the process
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        line = f"{time.monotonic() - self._begun:7.1f}  {text.rstrip()}\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()
            raw = line.encode()
            if self._size < LOG_BYTES:
                self._size += len(raw)
                self._file.write(raw if self._size < LOG_BYTES else b"the log ends here: it is full\n")
                self._file.flush()


class Machine:
    """This machine with the unpacked kit: folders, environment, and how a step is run."""

    def __init__(self, chosen: argparse.Namespace, log: Log):
        self.chosen, self.log = chosen, log
        self.kit, self.work, self.out = (path.absolute() for path in (chosen.kit, chosen.work, chosen.out))
        self.begun = time.monotonic()
        self.seconds: float = 60 * chosen.minutes
        """For everything together."""
        self.stopped = False

    @property
    def environment(self) -> dict[str, str]:
        home = os.environ.get("HOME", "")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.work / "site")]),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "RD3_SIMULATED_GPU": "0",
            "RD3_HOME": str(self.work / "home"),
            "RD3_DATA": str(self.kit / "data"),
            "HOME": home if home and os.access(home, os.W_OK) else str(self.work),
        }

    def stop(self, *_signal: object) -> None:
        """On a signal (preemption, Ctrl-C): end the running step, and start nothing else."""
        self.stopped = True

    def limit_s(self, seconds: float, fraction: float) -> float:
        """Most seconds of a step: ``seconds``, and no more than this fraction of all."""
        return min(seconds, fraction * self.seconds)

    def step(self, name: str, words: Sequence[str], seconds: float, tick: Callable[[], None] = lambda: None) -> int:
        """Run a command for at most ``seconds``, its output in the log; its exit code, or 124 if a signal ended it.

        ``tick`` is called twice a second.  After :meth:`stop` nothing is run, and 130 is returned.
        """
        if self.stopped:
            return 130
        self.log.write(f"== {name}, at most {seconds:.0f} s: {shlex.join(words)}")
        process = subprocess.Popen(
            words, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        try:
            code = self._wait(process, time.monotonic() + seconds, tick)
        finally:  # whatever it has left behind, and all of it if ``tick`` failed
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(PATIENCE_S)
        self.log.write(f"== {name}: exit code {code}")
        return code

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.log.write(line.decode(errors="replace"))

    def _wait(self, process: subprocess.Popen[bytes], end: float, tick: Callable[[], None]) -> int:
        killed_at = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return 124 if process.wait(0.5) < 0 or killed_at else process.returncode
            tick()
            now = time.monotonic()
            if killed_at is None and (now >= end or self.stopped):
                process.send_signal(signal.SIGTERM)
                killed_at = now + PATIENCE_S
            elif killed_at is not None and now >= killed_at:
                process.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(chosen, Log(chosen.out / "log.txt"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, machine.stop)
    try:
        _open_kit(machine)
        collector = _collector(machine)
        tests = _facts_and_tests(machine)
        _benchmarks(machine)
        collector.collect()
        campaign = _campaign(machine, collector)
    except Exception as error:  # whatever it is, the log is all that comes back
        for line in [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}: {error}"]:
            machine.log.write(line)
        return 2
    for path in sorted(chosen.out.iterdir()):
        machine.log.write(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    return 130 if machine.stopped else campaign or (3 if tests else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, required=True, help="for everything together")
    parser.add_argument("--out", type=Path, required=True, help="folder that comes back: a log and results, 8 files")
    parser.add_argument("--kit", type=Path, default=ROOT / ".kit", help="what pack.py made")
    parser.add_argument("--work", type=Path, default=ROOT / ".kit-work", help="where work goes on when called again")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--workers", default=str(max(1, min(4, (os.cpu_count() or 1) - 1))), help="of the campaign")
    parser.add_argument("--threads", default="1", help="CPU threads of each worker")
    parser.add_argument(
        "--leave", action="append", default=[], metavar="KEY", help="a recipe whose files stay there; repeat"
    )
    parser.add_argument("--tests", default="tests/cuda", help="what of the tests marked cuda runs; '' for none")
    parser.add_argument(
        "--benchmarks",
        default="-m benchmarks --quick --out {notes}",
        help="words for python, {notes} being a folder that comes back; '' for none",
    )
    return parser


def _open_kit(machine: Machine) -> None:
    """Unpack an archive, check the hash of every file, unpack the wheels, and copy the parents into the store."""
    archive = machine.kit / "kit.tar.xz"
    if archive.is_file():
        machine.kit = machine.work / "kit"
        shutil.rmtree(machine.kit, ignore_errors=True)
        with tarfile.open(archive) as opened:
            opened.extractall(machine.kit, filter="data")
    about = json.loads((machine.kit / "kit.json").read_text())
    for name, expected in about["files"].items():
        with open(machine.kit / name, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise ValueError(f"{machine.kit / name} did not arrive as it was packed; pack and send it again")
    machine.log.write(f"kit of {about['packed_at']}, commit {about['commit'][:12]}, {len(about['files'])} files")
    site = machine.work / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in sorted((machine.kit / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(site)
    for path in sorted((machine.kit / "store").rglob("*"), key=lambda path: "by-key" in path.parts):  # entries last
        target = machine.work / "store" / path.relative_to(machine.kit / "store")
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}")  # a copy that is cut short is not taken for a whole one
            shutil.copyfile(path, staged)
            os.replace(staged, target)
    (machine.work / "notes").mkdir(exist_ok=True)


def _collector(machine: Machine) -> Collector:
    """The collector that keeps results-*.zip in --out up to date, without the kit's parents and --leave."""
    sys.path[:0] = [str(ROOT), str(machine.work / "site")]
    from rd3.parts import Collector
    from rd3.recipe import KINDS

    wanted = {path.stem.rpartition("-")[2] for path in (machine.kit / "recipes").glob("*.json")}
    unknown = [key for key in machine.chosen.leave if key[:12] not in wanted]
    if unknown:
        raise ValueError(f"--leave {unknown[0]}: the kit has no such recipe; give its whole key")
    brought, store = machine.kit / "store", machine.work / "store"
    known = {store / path.relative_to(brought) for path in brought.rglob("by-key/*/*.json")}
    known |= {store / "by-key" / kind / f"{key}.json" for kind in KINDS for key in machine.chosen.leave}
    return Collector(store, machine.out, notes=machine.work / "notes", known=known)


def _facts_and_tests(machine: Machine) -> int:
    """Log the facts of this machine, then run the tests marked `cuda`; returns their exit code."""
    machine.log.write(f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    if shutil.which("nvidia-smi"):
        machine.step("device", ["nvidia-smi"], 20.0)
    machine.log.write(", ".join(f"{name} {_version(name)}" for name in PACKAGES.split()))
    if not machine.chosen.tests:
        return 0
    seconds = machine.limit_s(*TESTS)
    words = [sys.executable, "-m", "pytest", "-m", "cuda", "-rs", "-p", "no:cacheprovider"]
    words += [f"--session-timeout={max(1.0, seconds - 5):.0f}"]  # in time for the reports of failures
    return machine.step("tests", [*words, *shlex.split(machine.chosen.tests)], seconds)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "IS MISSING"


def _benchmarks(machine: Machine) -> None:
    notes = str(machine.work / "notes")
    words = [word.replace("{notes}", notes) for word in shlex.split(machine.chosen.benchmarks)]
    if words[:1] == ["-m"] and not (ROOT / words[1].replace(".", "/")).exists():
        machine.log.write(f"== benchmarks: skipped, there is no {words[1]} in this repository")
    elif words:
        machine.step("benchmarks", [sys.executable, *words], machine.limit_s(*BENCHMARKS))


def _campaign(machine: Machine, collector: Collector) -> int:
    """Run the recipes, and collect results every few seconds; returns the campaign's exit code, 4 without time."""
    left_s = machine.begun + machine.seconds - time.monotonic()
    minutes = (left_s - RESERVE_S if left_s > 4 * RESERVE_S else 0.75 * left_s) / 60
    collected_at = 0.0

    def collect() -> None:
        nonlocal collected_at
        if time.monotonic() - collected_at >= COLLECT_EVERY_S:
            collected_at = time.monotonic()
            try:
                _note_failures(machine)
                collector.collect()
            except (OSError, ValueError) as error:  # the recipes go on, and the next collection may succeed
                machine.log.write(f"not collected: {type(error).__name__}: {error}")

    code = 4
    if minutes > 0:
        places = {"store": "store", "out": "scratch", "home": "home"}
        words = [sys.executable, "-m", "rd3.run", str(machine.kit / "recipes"), "--data", str(machine.kit / "data")]
        words += [word for option, folder in places.items() for word in (f"--{option}", str(machine.work / folder))]
        words += ["--device", machine.chosen.device, "--workers", machine.chosen.workers]
        words += ["--threads", machine.chosen.threads, "--minutes", f"{minutes:.3f}"]
        code = machine.step("campaign", words, 60 * minutes + PATIENCE_S / 2, collect)
    collected_at = 0.0
    collect()
    for name, reason in collector.left_out.items():
        machine.log.write(f"left here: {name}: {reason}")
    return code


def _note_failures(machine: Machine) -> None:
    """Copy tracebacks of failed recipes to the notes, which come back."""
    for path in (machine.work / "scratch").glob("*/failure.txt"):
        target = machine.work / "notes" / "failures" / f"{path.parent.name[:12]}.txt"
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


if __name__ == "__main__":
    raise SystemExit(main())
