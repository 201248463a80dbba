"""Ctrl-C and SIGTERM: the first one stops gracefully, a later one exits at once; two quick ones count as one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_QUICK_S = 3.0
"""Time within which another signal is the same wish: exiting at once would leave runs open in MLflow."""


class Interrupts:
    """Inside ``with``, the first signal raises KeyboardInterrupt, or only sets ``name`` while ``deferred``."""

    def __init__(self) -> None:
        self.name = ""
        """Name of the received signal, or empty."""
        self.deferred = False
        self._received = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.install_handlers()
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install_handlers(self) -> None:
        """Install the handlers (again): Ray installs its own for SIGTERM when it starts."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Within the block a signal only sets ``name``, so that it stops the caller between two steps."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.name and time.monotonic() - self._received < _QUICK_S:
            return
        if self.name:
            os._exit(INTERRUPTED)
        self._received = time.monotonic()
        self.name = signal.Signals(number).name
        if not self.deferred:
            raise KeyboardInterrupt
