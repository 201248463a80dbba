"""How fast a device is: students are trained on noise for about a second each, and rates fitted to their times.

They run through the very loop of post-evaluation, so that what is made faster there is known here.  Two networks of
equal work may differ by a factor of two and more (depthwise convolutions, group norms), so each network's own factor is
kept beside the rates.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rd3 import __version__
from rd3.planning.cost import CPU_THREAD, GPU, TRAIN_FACTOR, Rates, Work, forward_cost

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rd3.datasets import Dataset, Split

SECONDS = 20.0
"""About how long a calibration takes."""
_FITTED = ("fp32", "bf16", "bytes", "step_s")
_ENDLESS = 1_000_000
"""Epochs of a run that is ended by the clock."""
_STEPS = {"cpu": 1, "cuda": 20}
"""Batches of an epoch, whose end waits for a GPU."""
_SPARED = 0.7
"""Light cases leave some of their time to heavy ones, of which a step takes longer."""


class Calibration(BaseModel):
    """Measured rates of one device with one torch, as plain data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cpu", "cuda"]
    device: str
    """Its name; of a processor, one thread was measured."""
    torch: str
    rd3: str
    fp32: float = Field(gt=0)
    """These and the next three as of :class:`rd3.planning.cost.Rates`."""
    bf16: float = Field(gt=0)
    bytes: float = Field(gt=0)
    step_s: float = Field(ge=0)
    auto: Literal["bf16", "fp32"]
    """What precision ``auto`` is on this device."""
    networks: dict[str, float]
    """``"<network> <precision>"`` to measured / fitted, of the passes alone."""
    residual: float = Field(ge=0)
    """Root mean square of ln(measured / fitted) over the runs, before that: 0.4 is a typical error of 40 to 50 %."""
    runs: int = Field(ge=1)
    measured_at: str
    """UTC."""

    @property
    def rates(self) -> Rates:
        """What a recipe takes besides its steps is not measured, and is taken as shipped."""
        shipped = GPU if self.kind == "cuda" else CPU_THREAD
        return Rates(
            name=self.device,
            fp32=self.fp32,
            bf16=self.bf16,
            bytes=self.bytes,
            step_s=self.step_s,
            start_s=shipped.start_s,
            auto=self.auto,
            spread=max(Rates._field_defaults["measured_spread"], math.exp(2 * self.residual)),
            measured=self.networks,
        )


class Run(NamedTuple):
    """What a training step takes, as measured."""

    network: str
    work: Work
    seconds: float


class _Case(NamedTuple):
    """A network, trained on batches of so many images of so many pixels a side."""

    network: str
    batch: int
    side: int = 32

    def step(self, precision: str) -> Work:
        """One training step without labels from a teacher."""
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
_FOR_GPUS = (_Case("resnet18", 100), _Case("resnet18", 50, 64), _Case("resnet18", 50, 224), _Case("resnet50", 50, 224))
"""Small images do not fill a GPU, and say nothing of how fast it computes."""


def calibrate(device: torch.device | str, *, seconds: float = SECONDS) -> Calibration:
    """Measure ``device`` (``cpu``: one thread of it) for about ``seconds``; longer where a single step takes long.

    Process seconds on a CPU, so that other work beside it counts little; wall time elsewhere.  Raises
    :class:`rd3.errors.BadValue` for a device that is not here.
    """
    import torch

    from rd3.device import bf16_in_hardware, usable_device
    from rd3.hardware import hardware, torch_version

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


def fit(runs: Sequence[Run], begin: Rates) -> tuple[Rates, float]:
    """Rates with the smallest squared ln(measured / fitted), and the root mean square of that; then networks' factors.

    Logarithms weigh a short run like a long one, and keep rates positive.  ``begin``: from where to search; also what a
    rate stays near that no run depends on.
    """
    import numpy as np
    from scipy.optimize import least_squares

    begin = begin._replace(start_s=0.0, measured={})
    start = np.log([getattr(begin, name) for name in _FITTED])

    def rates(logarithms: np.ndarray) -> Rates:
        return begin._replace(**dict(zip(_FITTED, np.exp(logarithms).tolist(), strict=True)))

    def off(logarithms: np.ndarray) -> np.ndarray:
        fitted = rates(logarithms)
        ratios = [math.log(run.seconds / fitted.seconds(run.work)) for run in runs]
        return np.concatenate([ratios, 0.01 * (logarithms - start)])

    best = least_squares(off, start)
    found = rates(best.x)
    return found._replace(measured=_networks(runs, found)), float(np.sqrt(np.mean(best.fun[: len(runs)] ** 2)))


def _networks(runs: Sequence[Run], rates: Rates) -> dict[str, float]:
    """Each network's passes, measured / fitted, without a step's fixed part: the geometric mean of its runs."""
    factors: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        fixed = run.work.steps * rates.step_s
        passes = max(run.seconds - fixed, 0.1 * run.seconds)  # where the fixed part was taken for too much
        factors[f"{run.network} {run.work.precision}"].append(passes / (rates.seconds(run.work) - fixed))
    return {name: math.exp(sum(map(math.log, found)) / len(found)) for name, found in factors.items()}


def _runs(device: torch.device, seconds: float) -> list[Run]:
    """Light cases first; each takes its part of the time that is left, and at least two epochs."""
    from rd3.device import bf16_in_hardware

    wanted = (*_CASES, *_FOR_GPUS) if device.type == "cuda" else _CASES
    cases = list(itertools.product(wanted, ("fp32", "bf16")))
    cases.sort(key=lambda one: one[0].step("").cost.flops)
    if bf16_in_hardware(device) is False:  # it would take most of the time to say how slow that is
        cases = [(case, precision) for case, precision in cases if precision == "fp32" or case in _EMULATED]
    clock = _clock(device)
    end = clock() + seconds
    runs: list[Run] = []
    for number, (case, precision) in enumerate(cases):
        share = _SPARED * (end - clock()) / (len(cases) - number)
        if share <= 0:  # a slow device has told enough
            break
        runs.append(Run(case.network, case.step(precision), _step_s(case, precision, device, share)))
    return runs


def _clock(device: torch.device) -> Callable[[], float]:
    """Process time of a CPU, of which others may have a part; wall time of what computes beside this process."""
    return time.process_time if device.type == "cpu" else time.perf_counter


class _TimeIsUp(Exception):
    """Ends a training."""


def _step_s(case: _Case, precision: str, device: torch.device, seconds: float) -> float:
    """Median seconds of a step, epochs of few steps each; the first one, which prepares kernels, is left out."""
    import numpy as np
    import torch

    from rd3.evaluation.posteval import evaluate
    from rd3.seeding import generator

    steps, clock = _STEPS[device.type], _clock(device)
    end = clock() + seconds
    ticks: list[float] = []

    def tick(_fraction: float, _note: str) -> None:
        ticks.append(clock())
        if len(ticks) > 1 and ticks[-1] > end:
            raise _TimeIsUp

    images = steps * case.batch
    shape = (images, 3, case.side, case.side)
    with contextlib.suppress(_TimeIsUp):
        evaluate(
            torch.randint(256, shape, dtype=torch.uint8, generator=generator(0, "calibration")),
            torch.arange(images) % 10,
            _nothing(case.side),
            student=case.network,
            device=device,
            progress=tick,
            epochs=_ENDLESS,
            batch_size=case.batch,
            precision=precision,
        )
    return float(np.median(np.diff(ticks))) / steps


def _nothing(side: int) -> Dataset:
    """A dataset of ten classes without an image: the clock ends a training before it is tested."""
    import numpy as np

    from rd3.datasets import Dataset, dataset_info

    class Nothing(Dataset):
        info = dataset_info("cifar10").model_copy(update={"resolution": side})

        @property
        def fingerprint(self) -> str:
            return "nothing"

        def labels(self, split: Split) -> np.ndarray:
            return np.empty(0, np.int64)

        def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
            raise NotImplementedError

        def original(self, split: Split, index: int) -> torch.Tensor:
            raise NotImplementedError

    return Nothing()
