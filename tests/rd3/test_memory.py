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
