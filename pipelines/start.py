"""Entry point of the ``rd3`` command: Ctrl-C while modules are loaded ends it without a traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Load the commands and run the one of the command line."""
    before = signal.signal(signal.SIGINT, _exit)
    from pipelines.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(130)  # nothing has begun
