"""How long work takes, and how fast the device can be."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

Work = Callable[[], int]
"""Does some work, and returns how many units it was."""


def as_work(action: Callable[[], object], units: int) -> Work:
    """``action`` as work of this many units."""

    def work() -> int:
        action()
        return units

    return work


def seconds(work: Work, device: torch.device) -> float:
    """Seconds per unit: process time on a CPU, which other work on the machine disturbs least, else wall time."""
    if device.type == "cpu":
        start = time.process_time()
        units = work()
        return (time.process_time() - start) / units
    torch.accelerator.synchronize()
    start = time.perf_counter()
    units = work()
    torch.accelerator.synchronize()
    return (time.perf_counter() - start) / units


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of how many times faster ``fast`` is."""
    return median(one / other for one, other in zip(slow, fast, strict=True))


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a product of square matrices, the best of five; fp32 without TF32."""
    side = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = as_work(lambda: left @ right, 1)
    product()
    return 2e-9 * side**3 / min(seconds(product, device) for _ in range(5))
