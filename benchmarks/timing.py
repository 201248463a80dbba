"""Timing of paths that do the same work, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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


def in_turn(
    paths: Mapping[str, Work], device: torch.device, rounds: int, limit_s: float | None = None
) -> dict[str, list[float]]:
    """Seconds per unit by path, one value per round, after one round to warm up.

    The path that begins changes from round to round.  No round begins ``limit_s`` wall seconds after the first.
    """
    for work in paths.values():
        work()
    names = list(paths)
    spent: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(rounds):
        if turn and limit_s is not None and time.perf_counter() - begun > limit_s:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            spent[name].append(seconds(paths[name], device))
    return spent


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
