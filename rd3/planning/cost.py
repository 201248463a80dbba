"""Cost of work before it runs: FLOPs and memory traffic of networks, and a rough estimate of seconds from them.

:mod:`rd3.planning.forecast` computes the work of a recipe.  Seconds are estimated from :class:`Rates`; running grids
correct them by the recipes that finished.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

from rd3 import models
from rd3.models import Cost, Extent

TRAIN_FACTOR = 3
"""Forward and backward pass together, in forward passes."""


class Work(NamedTuple):
    """Work of one recipe: its compute, and its number of sequential steps."""

    cost: Cost = Cost()
    steps: int = 0
    precision: str = "fp32"
    """``fp32``, ``bf16``, or ``auto``: the one that the device uses."""
    networks: tuple[tuple[str, Cost], ...] = ()
    """Networks by name, with their share of the cost."""


class Rates(NamedTuple):
    """Speed of one slot of a device: a CPU thread, or a whole GPU.  A rough approximation."""

    name: str
    """Readable name of the device."""
    fp32: float
    """Floating-point operations per second at fp32; memory traffic takes additional time."""
    bf16: float
    """Floating-point operations per second at bf16."""
    bytes: float
    """Memory bandwidth of layers, in bytes per second, as fp32."""
    step_s: float
    """Overhead of an optimizer step in seconds, independent of the network's width: data, launches, the optimizer."""
    start_s: float
    """Overhead of a recipe in seconds: loading data and parents, writing and logging the result."""
    auto: str = "fp32"
    """What precision ``auto`` means on this device: ``bf16`` if supported in hardware, else ``fp32``."""
    spread: float = 2.0
    """Most recipes take between the estimate divided by this factor and the estimate times it."""
    measured: Mapping[str, float] = MappingProxyType({})
    """``"<network> <precision>"`` to the measured time of its passes, as a multiple of the estimate."""
    measured_spread: float = 1.5
    """As ``spread``, for recipes whose cost is that of measured networks, but for a hundredth."""

    def seconds(self, work: Work) -> float:
        """Estimated seconds of one recipe on one slot: CPU time on a CPU thread, wall time on a GPU."""
        precision = self._precision(work)
        rest = work.cost - sum((cost for _name, cost in work.networks), Cost())
        passes = sum(
            self.measured.get(f"{name} {precision}", 1.0) * self._passes_s(cost, precision)
            for name, cost in work.networks
        )
        return self.start_s + work.steps * self.step_s + passes + self._passes_s(rest, precision)

    def spread_of(self, work: Work) -> float:
        """Uncertainty of the estimate, as a factor."""
        precision = self._precision(work)
        known = sum((cost.flops for name, cost in work.networks if f"{name} {precision}" in self.measured), 0.0)
        return self.measured_spread if self.measured and known >= 0.99 * work.cost.flops else self.spread

    def _precision(self, work: Work) -> str:
        return self.auto if work.precision == "auto" else work.precision

    def _passes_s(self, cost: Cost, precision: str) -> float:
        return cost.flops / (self.bf16 if precision == "bf16" else self.fp32) + cost.bytes / self.bytes


# With bf16 in hardware: training steps of eleven networks at 32 pixels, on a busy AMD EPYC with avx512_bf16, took 0.5
# to 1.6 times these estimates; processors differ by more.  Overhead of a recipe: 0.2 s of loading and writing (digits,
# Intel Xeon), and 0.2 s of tracking and scheduling in a warm worker (AMD EPYC).
CPU_THREAD = Rates(
    "a CPU thread with bf16 in hardware",
    fp32=2.4e11, bf16=9.7e11, bytes=1.2e10, step_s=0.02, start_s=0.5, auto="bf16", spread=2.5,
)  # fmt: skip
# bf16 emulated: training steps of eight networks at 32 pixels, on an Intel Xeon restricted to AVX2, took 0.7 to 2.2
# times these estimates.
PLAIN_CPU_THREAD = Rates(
    "a CPU thread that emulates bf16",
    fp32=7.8e10, bf16=3.4e9, bytes=4.1e9, step_s=0.005, start_s=0.5, auto="fp32", spread=2.5,
)  # fmt: skip
# Not measured: small batches keep a GPU at a few per cent of its peak.
GPU = Rates("a GPU", fp32=2.0e13, bf16=6.0e13, bytes=1.0e12, step_s=0.004, start_s=4.0, auto="bf16", spread=4.0)


def shipped_rates(kind: str, bf16: bool) -> Rates:
    """The rates shipped with RD3: of a GPU (``cuda``), or of a processor with or without bf16 in hardware."""
    if kind != "cpu":
        return GPU._replace(auto="bf16" if bf16 else "fp32")
    return CPU_THREAD if bf16 else PLAIN_CPU_THREAD


@functools.cache
def _table() -> dict[str, dict[str, list[list[float]]]]:
    """Network -> resolution -> (without classes, per class) of operations, bytes, saved values and channels."""
    text = files("rd3.planning").joinpath("forward_costs.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[list[float]]]] = json.loads(text)
    return table


@functools.cache
def forward_cost(network: str, num_classes: int, resolution: int) -> Cost:
    """Cost of one image's forward pass, from the shipped table; other networks are built and counted (loads torch)."""
    row = _table().get(network, {}).get(str(resolution))
    if row is not None:
        return Cost(*(fixed + per_class * num_classes for fixed, per_class in row[:2]))
    return models.forward_cost(network, num_classes, resolution)


@functools.cache
def extent(network: str, num_classes: int, resolution: int) -> Extent:
    """Size of a network and of its layer statistics on disk, from the table or as in :func:`forward_cost`."""
    row = _table().get(network, {}).get(str(resolution))
    if row is not None:
        return Extent(*(round(fixed + per_class * num_classes) for fixed, per_class in row[2:]))
    return models.extent(network, num_classes, resolution)


def forward_table(names: Iterable[str]) -> dict[str, dict[str, list[list[float]]]]:
    """The content of ``forward_costs.json`` for these networks; regenerate the file after they change."""
    few, many = 10, 20  # numbers of classes, in which work is linear

    def line(low: float, high: float) -> list[float]:
        slope = (high - low) / (many - few)
        return [low - slope * few, slope]

    table: dict[str, dict[str, list[list[float]]]] = {}
    for name in names:
        for side in sorted(models.network_info(name).resolutions):
            low, high = (
                (*astuple(models.forward_cost(name, classes, side)), *models.extent(name, classes, side))
                for classes in (few, many)
            )
            table.setdefault(name, {})[str(side)] = [line(*pair) for pair in zip(low, high, strict=True)]
    return table
