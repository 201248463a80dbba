"""Peaks begin anew with a reset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rd3.memory import peak_mib, reset_peak

CPU = torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks can be reset on Linux alone")
def test_what_was_held_before_the_reset_does_not_count():
    held = torch.ones(64 * 2**18)  # 64 MiB, touched
    high = peak_mib(CPU)
    del held
    reset_peak(CPU)
    low = peak_mib(CPU)
    assert low < high - 48
    held = torch.ones(128 * 2**18)
    assert peak_mib(CPU) > low + 112
    del held
