"""Entry point of the ``rd3`` command: Ctrl-C while it loads, and a second one while it ends, show no traceback."""

from __future__ import annotations

import os
import signal
import sys

from pipelines import check_tracking

INTERRUPTED = 130


def main() -> None:
    """Load the commands and run the one of the command line."""
    try:
        check_tracking()
    except ImportError as error:
        sys.stderr.write(str(error).replace(" Fix:", "\nFix:") + "\n")
        raise SystemExit(2) from None
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # nothing has begun
    from rd3.processes import open_standard_streams

    open_standard_streams()  # those that cron or `>&-` has closed
    from pipelines.cli import main as run

    signal.signal(signal.SIGINT, before)
    try:
        run()
    except KeyboardInterrupt:  # a second one, after the command has obeyed the first
        raise SystemExit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
