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
"""Most seconds of a step, and most of it as a fraction of --minutes."""
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
            if self._size < LOG_BYTES <= self._size + len(raw):
                raw = b"the log ends here: it is full\n"
                self._size = LOG_BYTES
            if self._size < LOG_BYTES or raw.startswith(b"the log ends"):
                self._file.write(raw)
                self._file.flush()
            self._size += len(raw)


class Bench:
    """The machine with the unpacked kit: folders, environment, and how a step is run."""

    def __init__(self, chosen: argparse.Namespace, log: Log):
        self.chosen, self.log = chosen, log
        self.kit, self.work, self.out = (path.absolute() for path in (chosen.kit, chosen.work, chosen.out))
        self.begun = time.monotonic()
        self.seconds: float = 60 * chosen.minutes
        """For everything together."""
        self.stopped = False

    @property
    def left_s(self) -> float:
        return self.begun + self.seconds - time.monotonic()

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

    def share_s(self, most: tuple[float, float]) -> float:
        seconds, part = most
        return min(seconds, part * self.seconds)

    def step(self, name: str, words: Sequence[str], seconds: float, tick: Callable[[], None] = lambda: None) -> int:
        """Run a command for at most ``seconds``, with its output in the log; returns its exit code.

        That is 124 if a signal ended it.  ``tick`` is called twice a second.  After :meth:`stop`, nothing is run, and
        130 is returned.
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
    bench = Bench(chosen, Log(chosen.out / "log.txt"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, bench.stop)
    try:
        _open_kit(bench)
        collector = _collector(bench)
        tests = _facts_and_tests(bench)
        _benchmarks(bench)
        collector.collect()
        campaign = _campaign(bench, collector)
    except Exception as error:  # whatever it is, the log is all that comes back
        for line in [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}: {error}"]:
            bench.log.write(line)
        return 2
    for name in sorted(path.name for path in chosen.out.iterdir()):
        bench.log.write(f"{name}: {(chosen.out / name).stat().st_size / 1e6:.2f} MB")
    return 130 if bench.stopped else campaign or (3 if tests else 0)


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


def _open_kit(bench: Bench) -> None:
    """Unpack an archive, check the hash of every file, unpack the wheels, and copy the parents into the store."""
    archive = bench.kit / "kit.tar.xz"
    if archive.is_file():
        bench.kit = bench.work / "kit"
        shutil.rmtree(bench.kit, ignore_errors=True)
        with tarfile.open(archive) as opened:
            opened.extractall(bench.kit, filter="data")
    about = json.loads((bench.kit / "kit.json").read_text())
    for name, expected in about["files"].items():
        with open(bench.kit / name, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise ValueError(f"{bench.kit / name} did not arrive as it was packed; pack and send it again")
    bench.log.write(f"kit of {about['packed_at']}, commit {about['commit'][:12]}, {len(about['files'])} files")
    site = bench.work / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    for wheel in sorted((bench.kit / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(site)
    for path in sorted((bench.kit / "store").rglob("*"), key=lambda path: "by-key" in path.parts):  # entries last
        target = bench.work / "store" / path.relative_to(bench.kit / "store")
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            staged = target.with_name(f".{target.name}")  # a copy that is cut short is not taken for a whole one
            shutil.copyfile(path, staged)
            os.replace(staged, target)
    (bench.work / "notes").mkdir(exist_ok=True)


def _collector(bench: Bench) -> Collector:
    """The collector that keeps results-*.zip in --out up to date, without the kit's parents and --leave."""
    sys.path[:0] = [str(ROOT), str(bench.work / "site")]
    from rd3.parts import Collector
    from rd3.recipe import KINDS

    wanted = {path.stem.rpartition("-")[2] for path in (bench.kit / "recipes").glob("*.json")}
    unknown = [key for key in bench.chosen.leave if key[:12] not in wanted]
    if unknown:
        raise ValueError(f"--leave {unknown[0]}: the kit has no such recipe; give its whole key")
    brought = {path.relative_to(bench.kit / "store") for path in (bench.kit / "store").rglob("by-key/*/*.json")}
    known = {bench.work / "store" / path for path in brought}
    known |= {bench.work / "store" / "by-key" / kind / f"{key}.json" for kind in KINDS for key in bench.chosen.leave}
    return Collector(bench.work / "store", bench.out, notes=bench.work / "notes", known=known)


def _facts_and_tests(bench: Bench) -> int:
    """Log the facts of this machine, then run the tests marked `cuda`; returns their exit code."""
    bench.log.write(f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    if shutil.which("nvidia-smi"):
        bench.step("device", ["nvidia-smi"], 20.0)
    bench.log.write(", ".join(f"{name} {_version(name)}" for name in PACKAGES.split()))
    if not bench.chosen.tests:
        return 0
    seconds = bench.share_s(TESTS)
    words = [sys.executable, "-m", "pytest", "-m", "cuda", "-rs", "-p", "no:cacheprovider"]
    words += [f"--session-timeout={max(1.0, seconds - 5):.0f}"]  # in time for the reports of failures
    return bench.step("tests", [*words, *shlex.split(bench.chosen.tests)], seconds)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "IS MISSING"


def _benchmarks(bench: Bench) -> None:
    notes = str(bench.work / "notes")
    words = [word.replace("{notes}", notes) for word in shlex.split(bench.chosen.benchmarks)]
    if words[:1] == ["-m"] and not (ROOT / words[1].replace(".", "/")).exists():
        bench.log.write(f"== benchmarks: skipped, there is no {words[1]} in this repository")
    elif words:
        bench.step("benchmarks", [sys.executable, *words], bench.share_s(BENCHMARKS))


def _campaign(bench: Bench, collector: Collector) -> int:
    """Run the recipes, and collect results every few seconds; returns the campaign's exit code, 4 without time."""
    minutes = (bench.left_s - RESERVE_S if bench.left_s > 4 * RESERVE_S else 0.75 * bench.left_s) / 60
    last = [0.0]

    def collect() -> None:
        if time.monotonic() - last[0] >= COLLECT_EVERY_S:
            last[0] = time.monotonic()
            try:
                _note_failures(bench)
                collector.collect()
            except (OSError, ValueError) as error:  # the recipes go on, and the next collection may succeed
                bench.log.write(f"not collected: {type(error).__name__}: {error}")

    code = 4
    if minutes > 0:
        places = {"store": "store", "out": "scratch", "home": "home"}
        words = [sys.executable, "-m", "rd3.run", str(bench.kit / "recipes"), "--data", str(bench.kit / "data")]
        words += [word for option, folder in places.items() for word in (f"--{option}", str(bench.work / folder))]
        words += ["--device", bench.chosen.device, "--workers", bench.chosen.workers]
        words += ["--threads", bench.chosen.threads, "--minutes", f"{minutes:.3f}"]
        code = bench.step("campaign", words, 60 * minutes + PATIENCE_S / 2, collect)
    last[0] = 0.0
    collect()
    for name, reason in collector.left_out.items():
        bench.log.write(f"left here: {name}: {reason}")
    return code


def _note_failures(bench: Bench) -> None:
    """Copy tracebacks of failed recipes to the notes, which come back."""
    for path in (bench.work / "scratch").glob("*/failure.txt"):
        target = bench.work / "notes" / "failures" / f"{path.parent.name[:12]}.txt"
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


if __name__ == "__main__":
    raise SystemExit(main())
