"""Signals: one stops, a second quick one is the same wish, even when the first has been obeyed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipelines.engine.interrupts import Interrupts


def test_a_second_quick_signal_changes_nothing_even_after_the_end(monkeypatch: pytest.MonkeyPatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
    assert interrupts.name == "SIGINT"
    signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(interrupts, "_received", interrupts._received - 60)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_the_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_while_the_command_is_loaded_has_no_traceback():
    code = (
        "import importlib.abc, signal, sys\n"
        "class Strike(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'pipelines.cli':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Strike())\n"
        "from pipelines.start import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
