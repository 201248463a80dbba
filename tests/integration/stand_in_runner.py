"""Stands in for :class:`rd3.campaign.runner.Runner` in worker processes: each recipe behaves as the test specifies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rd3.campaign.runner import Ended, Progressed, Report
from rd3.recipe import from_json


@dataclass(frozen=True)
class StandIn:
    """``behaviours``: key to ``dies``, ``dies once``, ``oom once``, ``fails``, ``device fails``, ``waits`` or ``deaf``;
    else done at once.

    Notes process and time of every begin and end in ``folder``, a file a recipe.
    """

    folder: Path
    behaviours: dict[str, str]

    def prepare(self) -> None:
        (self.folder / "pids").mkdir(exist_ok=True)
        (self.folder / "pids" / str(os.getpid())).touch()

    def run(
        self, documents: Sequence[str], report: Report, should_stop: Callable[[], bool], _cached_logits: object = None
    ) -> bool:
        for recipe in map(from_json, documents):
            first = not (self.folder / recipe.key).exists()
            with open(self.folder / recipe.key, "a") as stream:
                stream.write(f"{os.getpid()} {time.monotonic()}\n")
            report(Progressed(recipe.key, 0.5, "half"))
            ended = self._end(recipe.key, self.behaviours.get(recipe.key, ""), first, should_stop)
            with open(self.folder / recipe.key, "a") as stream:
                stream.write(f"{os.getpid()} {time.monotonic()}\n")
            report(ended)
            if ended.broken:
                return False
        return True

    def _end(self, key: str, behaviour: str, first: bool, should_stop: Callable[[], bool]) -> Ended:
        if behaviour == "dies" or (behaviour == "dies once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "oom once" and first:
            return Ended(key, "oom", "no memory", broken=True)
        if behaviour == "device fails":
            return Ended(key, "failed", "CUDA error: device-side assert triggered", broken=True)
        if behaviour == "fails":
            return Ended(key, "failed", "it was told to")
        while behaviour == "waits" and not should_stop():
            time.sleep(0.01)
        if behaviour == "waits":
            return Ended(key, "unfinished")
        if behaviour == "deaf":
            signal.pause()
        return Ended(key, "done", "", 1.0)
