"""Measure the speed of a device: train students on noise for about a second each and fit rates to the times.

This uses the loop of post-evaluation itself, so that improvements there are measured too.  Two networks of equal work
may differ in time by a factor of two or more (depthwise convolutions, group norms), so a factor per network is kept
besides the rates.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from rd3 import __version__
from rd3.datasets import Dataset, Split, dataset_info
from rd3.device import bf16_in_hardware, usable_device
from rd3.hardware import hardware, torch_version
from rd3.lazy import torch
from rd3.planning.cost import CPU_THREAD, GPU, TRAIN_FACTOR, Rates, Work, forward_cost
from rd3.seeding import generator
from rd3.values import Frozen

_FITTED = ("fp32", "bf16", "bytes", "step_s")
_STEPS = {"cpu": 1, "cuda": 20}
"""Batches per epoch; only the end of an epoch waits for a GPU."""
_TIME_SHARE = 0.7
"""Fraction of its equal share of the time that a case uses; the rest goes to heavier cases, whose steps are longer."""


class Calibration(Frozen):
    """Measured rates of one device with one version of torch, as plain data."""

    kind: Literal["cpu", "cuda"]
    device: str
    """Name of the device; for a processor, one thread was measured."""
    torch: str
    rd3: str
    fp32: float = Field(gt=0)
    """This and the next three as in :class:`rd3.planning.cost.Rates`."""
    bf16: float = Field(gt=0)
    bytes: float = Field(gt=0)
    step_s: float = Field(ge=0)
    auto: Literal["bf16", "fp32"]
    """The precision that ``auto`` means on this device."""
    networks: dict[str, float]
    """``"<network> <precision>"`` to measured / fitted time of forward and backward passes."""
    residual: float = Field(ge=0)
    """Root mean square of ln(measured / fitted) over the runs, without these factors; 0.4 is a factor of 1.5."""
    runs: int = Field(ge=1)
    """Timed trainings: one for each network, batch size and precision."""
    measured_at: str
    """UTC."""

    @property
    def rates(self) -> Rates:
        """The rates of cost estimates; the time before a recipe's first step (``start_s``) has its built-in value."""
        shipped = GPU if self.kind == "cuda" else CPU_THREAD
        return Rates(
            name=self.device,
            **{name: getattr(self, name) for name in _FITTED},
            start_s=shipped.start_s,
            auto=self.auto,
            spread=max(Rates._field_defaults["measured_spread"], math.exp(2 * self.residual)),
            measured=self.networks,
        )


class Run(NamedTuple):
    """Measured time of a training step."""

    network: str
    work: Work
    seconds: float


class _Case(NamedTuple):
    """A network to measure, with batch size and resolution."""

    network: str
    batch: int
    side: int = 32

    def step(self, precision: str) -> Work:
        """Work of one training step, without teacher."""
        cost = TRAIN_FACTOR * self.batch * forward_cost(self.network, 10, self.side)
        return Work(cost, 1, precision, ((self.network, cost),))


_CASES = (
    *(
        _Case(network, 20)
        for network in (
            "convnet_w32", "convnet_d1", "convnet_d2", "convnet_in", "convnet", "resnet18_w16", "wrn_16_2",
            "shufflenet_v2_x0_5", "mobilenet_v2",
        )
    ),
    _Case("alexnet", 10),
    _Case("resnet18", 10),
    _Case("resnet18_w16", 100),
    _Case("convnet_w32", 5),
)  # fmt: skip
_EMULATED = _CASES[:2]
"""The cases that are measured at bf16 where it is emulated, which is slow."""
_GPU_CASES = (_Case("resnet18", 100), _Case("resnet18", 50, 64), _Case("resnet18", 50, 224), _Case("resnet50", 50, 224))
"""Larger cases, as small images do not utilise a GPU."""


def calibrate(device: torch.device | str, *, seconds: float = 20.0) -> Calibration:
    """Measure ``device`` (``cpu``: one thread) for about ``seconds``, or longer if a single step takes long.

    CPU time is measured on a CPU, so that concurrent work matters little, and wall time elsewhere.  Raises
    :class:`rd3.errors.BadValue` for a device that is not available.
    """
    device = usable_device(device)
    kind: Literal["cpu", "cuda"] = "cpu" if device.type == "cpu" else "cuda"
    name = hardware(kind).name if kind == "cpu" else torch.cuda.get_device_name(device)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = _runs(device, seconds)
    finally:
        torch.set_num_threads(before)
    fitted, residual = fit(runs, GPU if kind == "cuda" else CPU_THREAD)
    return Calibration(
        kind=kind,
        device=name,
        torch=torch_version(),
        rd3=__version__,
        **{name: getattr(fitted, name) for name in _FITTED},
        auto="bf16" if bf16_in_hardware(device) else "fp32",
        networks=dict(fitted.measured),
        residual=residual,
        runs=len(runs),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def fit(runs: Sequence[Run], initial: Rates) -> tuple[Rates, float]:
    """Rates that minimise the squared ln(measured / fitted), and its root mean square.

    Logarithms give short and long runs equal weight and keep rates positive.  ``initial``: start of the search, and the
    value that a rate keeps if no run depends on it.
    """
    from scipy.optimize import least_squares

    initial = initial._replace(start_s=0.0, measured={})
    start = np.log([getattr(initial, name) for name in _FITTED])

    def rates(logarithms: np.ndarray) -> Rates:
        return initial._replace(**dict(zip(_FITTED, np.exp(logarithms).tolist(), strict=True)))

    def off(logarithms: np.ndarray) -> np.ndarray:
        fitted = rates(logarithms)
        ratios = [math.log(run.seconds / fitted.seconds(run.work)) for run in runs]
        weak_prior = 0.01 * (logarithms - start)  # keeps rates that no run determines near the shipped ones
        return np.concatenate([ratios, weak_prior])

    best = least_squares(off, start)
    found = rates(best.x)
    return found._replace(measured=_networks(runs, found)), float(np.sqrt(np.mean(best.fun[: len(runs)] ** 2)))


def _networks(runs: Sequence[Run], rates: Rates) -> dict[str, float]:
    """Measured / fitted time of each network's passes, without the fixed cost of a step: geometric mean of its runs."""
    factors: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        fixed = run.work.steps * rates.step_s
        passes = max(run.seconds - fixed, 0.1 * run.seconds)  # in case the fixed part was overestimated
        factors[f"{run.network} {run.work.precision}"].append(passes / (rates.seconds(run.work) - fixed))
    return {name: math.exp(sum(map(math.log, found)) / len(found)) for name, found in factors.items()}


def _runs(device: torch.device, seconds: float) -> list[Run]:
    """Runs of all cases, light ones first; each gets its share of the time left, and at least two epochs."""
    wanted = (*_CASES, *_GPU_CASES) if device.type == "cuda" else _CASES
    cases = sorted(itertools.product(wanted, ("fp32", "bf16")), key=lambda one: one[0].step("fp32").cost.flops)
    if bf16_in_hardware(device) is False:  # measuring slow emulation would take most of the time
        cases = [(case, precision) for case, precision in cases if precision == "fp32" or case in _EMULATED]
    clock = _clock(device)
    end = clock() + seconds
    runs: list[Run] = []
    for number, (case, precision) in enumerate(cases):
        share = _TIME_SHARE * (end - clock()) / (len(cases) - number)
        if share <= 0:  # no time left on a slow device
            break
        runs.append(Run(case.network, case.step(precision), _step_s(case, precision, device, share)))
    return runs


def _clock(device: torch.device) -> Callable[[], float]:
    """CPU time on a CPU, which may be shared with other processes; wall time on other devices."""
    return time.process_time if device.type == "cpu" else time.perf_counter


class _TimeIsUp(Exception):
    """Ends a training run."""


def _step_s(case: _Case, precision: str, device: torch.device, seconds: float) -> float:
    """Median seconds per step over short epochs; the first epoch, which prepares kernels, is left out."""
    from rd3.evaluation.posteval import evaluate

    steps, clock = _STEPS[device.type], _clock(device)
    end = clock() + seconds
    ticks: list[float] = []

    def tick(fraction: float, _note: str) -> None:
        if not fraction:  # a note on the images
            return
        ticks.append(clock())
        if len(ticks) > 1 and ticks[-1] > end:
            raise _TimeIsUp

    images = steps * case.batch
    shape = (images, 3, case.side, case.side)
    with contextlib.suppress(_TimeIsUp), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch may lack some of the ten classes
        evaluate(
            torch.randint(256, shape, dtype=torch.uint8, generator=generator(0, "calibration")),
            torch.arange(images) % 10,
            _EmptyDataset(case.side),
            student=case.network,
            device=device,
            progress=tick,
            epochs=1_000_000,  # the clock ends it
            batch_size=case.batch,
            precision=precision,
        )
    return float(np.median(np.diff(ticks))) / steps


class _EmptyDataset(Dataset):
    """A dataset of ten classes without images: training ends by the clock before any test."""

    fingerprint = "nothing"

    def __init__(self, side: int):
        self.info = dataset_info("cifar10").model_copy(update={"resolution": side})

    def labels(self, split: Split) -> np.ndarray:
        return np.empty(0, np.int64)

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        raise NotImplementedError

    def original(self, split: Split, index: int) -> torch.Tensor:
        raise NotImplementedError
