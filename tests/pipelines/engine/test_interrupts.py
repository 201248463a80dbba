"""Signals: one stops, a second quick one is the same wish, even when the first has been obeyed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipelines.engine.interrupts import Interrupts


@pytest.fixture(autouse=True)
def python_handlers() -> Iterator[None]:
    """Those of a new Python process, which a test may replace."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_interrupts_or_is_noted():
    with Interrupts() as interrupts:
        interrupts.deferred = True
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.name == "SIGTERM"
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
    assert interrupts.name == "SIGINT"


def test_a_second_quick_signal_changes_nothing_even_after_the_end(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(interrupts, "_received", interrupts._received - 60)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "a later one goes where it went before"


def test_without_a_signal_the_handlers_are_restored():
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
