"""Rates out of timed steps: found again where times were made from known ones, and measured for real once."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rd3.hardware import hardware, processor, torch_version
from rd3.models import Cost
from rd3.planning.calibration import Calibration, Run, calibrate, fit
from rd3.planning.cost import CPU_THREAD, Rates, Work

TRUE = Rates("true", fp32=2e11, bf16=8e11, bytes=5e9, step_s=0.01, start_s=0.0)


def step(network: str, flops: float, traffic: float, precision: str) -> Work:
    return Work(Cost(flops, traffic), 1, precision, ((network, Cost(flops, traffic)),))


STEPS = [
    step(name, flops, traffic, precision)
    for precision in ("fp32", "bf16")
    for name, flops, traffic in (("a", 1e8, 1e6), ("b", 1e10, 1e8), ("c", 1e11, 1e8), ("d", 1e10, 1e9))
]


def calibration(**changed: object) -> Calibration:
    facts = dict(
        kind="cpu", device="A CPU", torch="2.0", rd3="0.1", fp32=1e11, bf16=2e11, bytes=1e10, step_s=0.001, auto="bf16",
        networks={"resnet18 bf16": 2.0}, residual=0.3, runs=9, measured_at="2026-11-26T00:00:00+00:00",
    )  # fmt: skip
    return Calibration(**{**facts, **changed})


def test_rates_are_found_again_from_the_times_that_they_give():
    found, residual = fit([Run("abcd"[n % 4], work, TRUE.seconds(work)) for n, work in enumerate(STEPS)], CPU_THREAD)
    assert [found.fp32, found.bf16, found.bytes, found.step_s] == pytest.approx([2e11, 8e11, 5e9, 0.01], rel=0.1)
    assert residual < 0.02
    far = {name: factor for name, factor in found.measured.items() if name[0] != "a"}  # whose passes are 5 % of a step
    assert far == pytest.approx(dict.fromkeys(far, 1.0), rel=0.1)


def test_a_network_that_is_slow_for_its_work_gets_a_factor_of_its_own():
    slow = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 3.0}
    runs = [Run(work.networks[0][0], work, slow[work.networks[0][0]] * TRUE.seconds(work)) for work in STEPS]
    found, residual = fit(runs, CPU_THREAD)
    assert residual > 0.1
    for run in runs:
        assert found.seconds(run.work) == pytest.approx(run.seconds, rel=0.05)
    assert found.measured["d fp32"] / found.measured["b fp32"] > 1.5


def test_the_residual_is_the_root_mean_square_of_the_logarithms():
    work = step("a", 1e10, 1e8, "fp32")
    found, residual = fit([Run("a", work, 1.0), Run("a", work, 4.0)], CPU_THREAD)
    assert residual == pytest.approx(math.log(2), rel=0.01)
    assert found._replace(measured={}).seconds(work) == pytest.approx(2.0, rel=0.05)


def test_factors_count_for_their_network_and_precision_alone():
    rates = calibration().rates._replace(start_s=0.0)
    part, rest = Cost(1e11, 0), Cost(2e11, 0)
    both = Work(part + rest, 0, "bf16", (("resnet18", part), ("convnet", rest)))
    assert rates.seconds(both) == pytest.approx(2 * 0.5 + 1.0)
    assert rates.seconds(both._replace(precision="fp32")) == pytest.approx(3.0)
    assert rates.seconds(both._replace(precision="auto")) == rates.seconds(both)
    plain = calibration(auto="fp32").rates
    assert plain.seconds(both._replace(precision="auto")) == pytest.approx(3.0 + plain.start_s)
    assert rates.spread_of(both) == pytest.approx(math.exp(0.6))
    assert rates.spread_of(Work(part, 0, "bf16", (("resnet18", part),))) == rates.measured_spread
    backbone = Work(part, 0, "bf16")  # a diffusion model, whose passes are under no network
    assert rates.spread_of(backbone) == pytest.approx(math.exp(0.6))
    assert rates.spread_of(Work()) == rates.measured_spread


def test_a_calibration_is_plain_data():
    found = calibration()
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["device"] == "A CPU"


def test_this_machine_is_measured():
    threads = torch.get_num_threads()
    found = calibrate("cpu", seconds=0.3)
    assert (found.kind, found.device, found.torch) == ("cpu", processor().name, torch.__version__.partition("+")[0])
    assert found.runs >= 1 and found.networks and found.rates.seconds(STEPS[0]) > 0
    assert torch.get_num_threads() == threads


def test_the_processor_has_a_name_and_threads():
    here = hardware("cpu")
    assert here.name and here.count >= 1 and here.kind == "cpu"
    assert torch_version() == torch.__version__ or torch.__version__.startswith(torch_version())
