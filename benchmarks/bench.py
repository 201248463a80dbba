"""What every case uses: the device, the number of rounds, how work is timed, and how a comparison becomes a row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import torch

from rd3.device import bf16_in_hardware

Work = Callable[[], int]
"""Does some work, and returns how many units it was."""
QUICK_LIMIT_S = 4.0
"""Wall seconds after which one comparison begins no further round, with ``--quick``."""


class Skipped(Exception):
    """Raised by a case that cannot run here, with the reason."""


@dataclass(frozen=True)
class Job:
    """What is timed: a unit of work, such as a training step."""

    case: str
    variant: str
    unit: str
    batch: int
    images: float | None = None
    """Images per unit; None if a rate of images means nothing."""
    gflop: float | None = None
    """Floating-point operations that a unit cannot do without, in 1e9."""


@dataclass(frozen=True)
class Row:
    """One comparison.  Times are medians of the rounds, the ratio is the median of the rounds' ratios."""

    case: str
    variant: str
    unit: str
    """What takes ``ours_s`` seconds."""
    ours_s: float
    reference_s: float
    ratio: float
    """How many times faster ours is."""
    rounds: int
    batch: int
    dtype: str
    """Data type of our path's matrix products."""
    layout: str
    aim: float | None = None
    """``ratio`` to reach."""
    images_per_s: float | None = None
    gflop_per_s: float | None = None
    """Rate of our path; a multiply-add counts as two operations, and only operations that a unit needs count."""
    share_of_peak: float | None = None
    """``gflop_per_s`` as a fraction of the best rate of a matrix product at ``dtype`` in the same process."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the aim is reached."""
        if self.aim is None:
            return ""
        return f"{'reaches' if self.ratio >= self.aim else 'MISSES'} {self.aim:g}"


@dataclass
class Bench:
    """One run of the suite."""

    device: torch.device
    rounds: int = 5
    quick: bool = False
    network: str = "resnet18"
    out: Path = Path(".bench")

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @cached_property
    def peaks(self) -> dict[str, float]:
        """GFLOP/s of matrix products by data type; without bf16 where it is emulated."""
        types = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if bf16_in_hardware(self.device) else {})
        return {name: matmul_peak(self.device, dtype) for name, dtype in types.items()}

    def compare(self, paths: dict[str, Work]) -> dict[str, list[float]]:
        """Seconds per unit of each path, one value per round, after one round to warm up.

        Paths take turns; the one that begins changes from round to round.
        """
        for work in paths.values():
            work()
        names, begun = list(paths), time.perf_counter()
        spent: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(self.rounds):
            if turn and self.quick and time.perf_counter() - begun > QUICK_LIMIT_S:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                spent[name].append(seconds(paths[name], self.device))
        return spent

    def row(
        self,
        job: Job,
        ours: list[float],
        reference: list[float],
        *,
        dtype: str,
        layout: str | None = None,
        aim: float | None = None,
        note: str = "",
    ) -> Row:
        """The row of a comparison; ``ours`` and ``reference`` are seconds per unit by round.

        ``layout``: memory format of our weights; by default that of networks without group norm.  The reference path is
        always NCHW.
        """
        ours_s = median(ours)
        rate = job.gflop / ours_s if job.gflop else None
        peak = self.peaks.get(dtype)
        return Row(
            case=job.case,
            variant=job.variant,
            unit=job.unit,
            ours_s=ours_s,
            reference_s=median(reference),
            ratio=ratio(reference, ours),
            rounds=len(ours),
            batch=job.batch,
            dtype=dtype,
            layout=layout or ("channels last" if self.on_cpu or dtype == "bf16" else "NCHW"),
            aim=aim,
            images_per_s=job.images / ours_s if job.images else None,
            gflop_per_s=rate,
            share_of_peak=rate / peak if rate and peak else None,
            note=note,
        )


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
