"""Before a machine is shut down: ask its trials to stop, so that they can upload completed work.

Run ``python -m pipelines.leave; ray stop`` on the node when it gets notice.  ``ray stop`` alone, or a shutdown that
signals all processes at once, ends trials together with their Ray node, before they can upload anything.
"""

from __future__ import annotations

import contextlib

TITLE = "ray::"
"""Prefix of the names that Ray gives to worker processes."""


def leave(give_up_after_s: float = 30.0) -> int:
    """Send SIGTERM to every trial on this machine; returns how many have not ended in time."""
    import psutil

    trials = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            command = process.cmdline()  # empty for a zombie
            if command and command[0].startswith(TITLE):
                process.terminate()
                trials.append(process)
    _gone, left = psutil.wait_procs(trials, timeout=give_up_after_s)
    return len(left)


if __name__ == "__main__":
    raise SystemExit(min(1, leave()))
