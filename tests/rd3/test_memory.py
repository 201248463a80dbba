"""Peaks begin anew with a reset."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from rd3.device import peak_mib, reset_peak

CPU = torch.device("cpu")


def _hold(mib: int) -> mmap.mmap:
    """Memory straight from the system, every page of it touched: no allocator keeps it afterwards."""
    held = mmap.mmap(-1, mib * 2**20)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    return held


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks can be reset on Linux alone")
def test_what_was_held_before_the_reset_does_not_count():
    reset_peak(CPU)
    before = peak_mib(CPU)
    with _hold(256):
        assert peak_mib(CPU) > before + 200
    assert peak_mib(CPU) > before + 200
    reset_peak(CPU)
    assert peak_mib(CPU) < before + 56


def test_a_kernel_that_does_not_state_the_peak(tmp_path, monkeypatch):
    status = tmp_path / "status"
    monkeypatch.setattr("rd3.device._STATUS", status)
    status.write_bytes(b"Name:\tcaf\xe9\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
    assert peak_mib(CPU) == 2
    status.write_text("Name:\tpython\nFDSize:\t64\nVmSize:\t9 kB\nVmRSS:\t8 kB\nVmData:\t7 kB\n")  # gVisor's
    assert peak_mib(CPU) > 50  # that of getrusage: torch alone takes more
