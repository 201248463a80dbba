"""A machine is going to be taken away: its trials are told first, and have a moment to send what is finished.

``python -m pipelines.leave; ray stop`` on the node, where there is notice.  ``ray stop`` alone, or a shutdown that
tells all at once, ends trials together with the part of Ray below them, before they could send anything.
"""

from __future__ import annotations

import contextlib

TITLE = "ray::"
"""How Ray names the processes that trials run in."""
PATIENCE_S = 30.0


def leave(give_up_after_s: float = PATIENCE_S) -> int:
    """SIGTERM to every trial of this machine; how many have not ended in time."""
    import psutil

    trials = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone, or somebody else's
            if process.cmdline()[:1] and process.cmdline()[0].startswith(TITLE):
                process.terminate()
                trials.append(process)
    _gone, left = psutil.wait_procs(trials, timeout=give_up_after_s)
    return len(left)


if __name__ == "__main__":
    raise SystemExit(min(1, leave()))
