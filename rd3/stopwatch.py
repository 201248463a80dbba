"""Wall time and CPU time of a computation, as results state them."""

from __future__ import annotations

import time


class Stopwatch:
    """Starts when it is created."""

    def __init__(self) -> None:
        self._wall, self._process = time.perf_counter(), time.process_time()

    def include(self, wall_s: float, process_s: float) -> None:
        """Count the time of earlier attempts as well, in seconds."""
        self._wall, self._process = self._wall - wall_s, self._process - process_s

    def spent(self) -> dict[str, float]:
        """``wall_s``, and ``process_s``: CPU time of all threads of the process; in seconds."""
        return {"wall_s": time.perf_counter() - self._wall, "process_s": time.process_time() - self._process}
