"""A trial: runs recipes, several if they are trained together, in a worker process and reports to the driver."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from pipelines.engine.attempt import Unfit, attempt
from pipelines.engine.job import JOBS, TrialEnd
from pipelines.engine.uploads import upload_unfinished
from rd3.campaign.running import CHECKPOINT_UNUSABLE
from rd3.device import configure_torch

REPORT_EVERY_S = 3.0
"""Minimum interval between two reports of progress."""
UNFIT_S = 10.0
"""Time for an unfit process to exit by itself; with a failed device it may hang."""


class Reports:
    """Reports of a trial to the driver, which identify a recipe by the index of its job.

    Ends, and trainings that begin again, are sent at once, the progress of all recipes at intervals in one report.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]):
        """``send`` returns when the driver has received the report."""
        self._send = send
        self._moved: dict[int, tuple[float, str]] = {}
        self._last = time.monotonic()

    def progress(self, number: int, fraction: float, note: str) -> None:
        self._moved[number] = fraction, note
        if note.startswith(CHECKPOINT_UNUSABLE) or time.monotonic() - self._last >= REPORT_EVERY_S:
            self._last = time.monotonic()
            self._send({"moved": json.dumps([[number, *how] for number, how in self._moved.items()])})
            self._moved.clear()

    def ended(self, number: int, end: TrialEnd) -> None:
        self._moved.pop(number, None)
        self._send({"number": number, "end": end.to_json()})


def run_trial(config: dict[str, Any]) -> None:
    """The trainable that Tune runs in a worker process; ``config["jobs"]`` are :data:`JOBS` as JSON."""
    from ray import tune

    die_with_parent()
    try:
        run_jobs(config["jobs"], tune.report)
    except Unfit as error:
        tune.report({"unfit": str(error)})  # recipes without an end are run again
        timer = threading.Timer(UNFIT_S, os._exit, (1,))
        timer.daemon = True
        timer.start()
        raise  # so that Tune discards this process; it reuses that of a trial that succeeds


def run_jobs(text: str, send: Callable[[dict[str, Any]], None]) -> None:
    """Run the jobs of a trial, given as JSON, in this process; ``send`` passes reports on.  Raises :class:`Unfit`."""
    jobs = JOBS.validate_python(json.loads(text))
    configure_process(jobs[0].gpu)
    reports = Reports(send)
    attempt(jobs, reports.progress, reports.ended)


def configure_process(gpu: bool) -> None:
    """Use one thread, hide GPUs from CPU trials (Ray does not), and flush denormal numbers to zero: they are slow."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    configure_torch(1)


@cache  # one thread a process
def die_with_parent() -> None:
    """Exit when the parent, a Ray process, has ended: a killed driver takes Ray down, but not the workers."""
    parent = os.getppid()
    atexit.register(upload_unfinished)  # Ray turns SIGTERM into a normal exit, which runs atexit handlers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        upload_unfinished()
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()
