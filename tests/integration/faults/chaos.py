"""Kills, stops and damages parts of a platform while a grid is being made, and compares with a run in peace.

    PYTHONPATH=tests/integration python tests/integration/faults/chaos.py --seed 0 [--moments 20] [--cells 50]

Works on the stack of ``infra/stack/stack.sh``, whose variables must be set (``make chaos`` does all of that).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from disturbed import ROOT, Disturbed, kill

from tracking.ledger.ledger import Ledger
from tracking.ledger.object_store import open_objects

SERVERS = ("mlflow", "postgres", "s3")
KILLS = ("worker", "node", "driver")
STOPS = tuple(f"stop {part}" for part in (*KILLS, *SERVERS))
DAMAGES = ("damage copy", "damage source")
SETTLE_S = 3.0
"""A moment comes at most so long after a recipe was seen in flight."""


def _part(what: str) -> str:
    return "ray-worker" if what == "node" else what


class LongGrid(Disturbed):
    deadline_s = 3600.0


class Through(Exception):
    """The grid is done: there is nothing left to disturb."""


@dataclass
class Chaos:
    """What is done to a run: ``do`` starts and kills parts of the stack."""

    run: Disturbed
    do: Callable[..., Any]
    draw: random.Random
    outage_s: float
    struck: list[str] = field(default_factory=list)
    """Each strike, with the recipe that was in flight."""

    def strike(self, what: str) -> None:
        """Wait until something is being made, and a moment more, then strike once."""
        self._see()
        time.sleep(self.draw.uniform(0.0, SETTLE_S))
        event = self._see()
        self.struck.append(f"{what} while {event['label']} was in flight")
        if what == "worker":
            kill(event["pid"])
        elif what == "driver":
            self.run.driver.kill()
            self.run.driver.wait()
        elif what in STOPS:
            self._stop(self._processes(what.removeprefix("stop "), event))
        elif what in DAMAGES:
            self._damage(source=what == "damage source")
        else:
            part = _part(what)
            self.do("kill", part)
            time.sleep(self.outage_s)
            self.do("start", part)

    def _processes(self, what: str, event: dict[str, Any]) -> list[int]:
        if what == "worker":
            return [event["pid"]]
        if what == "driver":
            return [self.run.driver.pid]
        return [int(word) for word in self.do("pids", _part(what)).split()]

    def _stop(self, processes: list[int]) -> None:
        """Freeze processes for the length of an outage; those that end meanwhile are forgotten."""
        for sent, pause_s in ((signal.SIGSTOP, self.outage_s), (signal.SIGCONT, 0.0)):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, sent)
            time.sleep(pause_s)

    def _damage(self, *, source: bool) -> None:
        """Cut off the end of the largest file of a finished parent: of a machine's copy, or where it is stored."""
        if not source:
            copies = [path for path in self.run.home.glob("cache/*/*/*") if path.is_file()]
            if copies:
                path = self.draw.choice(sorted(copies))
                path.write_bytes(path.read_bytes()[:-1])
            return
        with self.run.environment():
            ledger = Ledger(self.run.place.artifacts)
            keys = sorted(ledger.keys("set"))
            entry = ledger.find("set", self.draw.choice(keys)) if keys else None
            if entry is not None:
                stored = open_objects(f"s3://rd3/mlflow/{entry.artifact.removeprefix('mlflow-artifacts:/')}")
                name = max(entry.files, key=lambda name: len(stored.get(name) or b""))
                stored.put(name, stored.get(name)[:-1])

    def _see(self) -> dict[str, Any]:
        """A recipe in flight; a driver that is gone is started again, unless it was through."""
        deadline = time.monotonic() + self.run.deadline_s
        while time.monotonic() < deadline:
            code = None if self.run.driver is None else self.run.driver.poll()
            if code == 0:
                raise Through
            if self.run.driver is None or code is not None:
                self.run.start()
            event = self.run.in_flight()
            if event:
                return event
            time.sleep(0.05)
        raise AssertionError(f"nothing was in flight for {self.run.deadline_s:.0f} s:\n{self.run.words()}")


def grid_of(cells: int, epochs: int, folder: Path) -> Path:
    """The grid of ``cells.yaml`` with so many evaluations, or a few more, of so many epochs."""
    plain = yaml.safe_load(Path(__file__).with_name("cells.yaml").read_text())
    plain["student_seeds"] = list(range(-(-cells // 3)))
    plain["protocols"] = [{"rd3-reduced": {"epochs": epochs, "precision": "fp32"}}]
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def settle(run: Disturbed, tries: int = 4) -> None:
    """Run the command until all is done; a recipe that died too often is a failure of one run only."""
    for _ in range(tries):
        if run.driver is None or run.driver.poll() is not None:
            run.start()
        if run.wait() == 0:
            return
    raise AssertionError(f"not done after {tries} runs:\n{run.words()}")


def main(seed: int, moments: int, cells: int, epochs: int, outage_s: float, faults: tuple[str, ...]) -> None:
    script = ROOT / "infra" / "stack" / "stack.sh"

    def do(*words: str) -> str:
        return subprocess.run([str(script), *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    folder = Path(tempfile.mkdtemp(prefix="rd3-chaos-"))
    grid = grid_of(cells, epochs, folder)
    env = dict(os.environ)
    begun = time.monotonic()
    quiet = LongGrid(env, grid, folder / "quiet", "chaos-quiet")
    quiet.prepare()
    quiet.finish()
    peace_s = time.monotonic() - begun
    print(f"in peace: {len(quiet.correct())} evaluations in {peace_s:.0f} s", flush=True)

    draw = random.Random(seed)
    rough = LongGrid(env, grid, folder / "rough", "chaos-rough")
    rough.prepare()
    chaos = Chaos(rough, do, draw, outage_s)
    begun = time.monotonic()
    for number in range(moments):
        try:
            chaos.strike(draw.choice(faults))
        except Through:
            raise SystemExit(f"the grid was through after {number} of {moments} moments: give more --epochs") from None
        print(f"{time.monotonic() - begun:6.0f} s  {number + 1}/{moments}  {chaos.struck[-1]}", flush=True)
    settle(rough)
    wall_s = time.monotonic() - begun
    rough.check(quiet)
    figures = {
        "seed": seed,
        "evaluations": len(quiet.correct()),
        "strikes": dict(Counter(text.split(" while ")[0] for text in chaos.struck)),
        "outage_s": outage_s,
        "second_attempts": rough.second_attempts(),
        "peace_s": round(peace_s),
        "wall_s": round(wall_s),
        "equal": rough.correct() == quiet.correct(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--cells", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--outage", type=float, default=60.0)
    parser.add_argument("--kills-only", action="store_true")
    chosen = parser.parse_args()
    faults = KILLS if chosen.kills_only else (*KILLS, *SERVERS, *STOPS, *DAMAGES)
    main(chosen.seed, chosen.moments, chosen.cells, chosen.epochs, chosen.outage, faults)
