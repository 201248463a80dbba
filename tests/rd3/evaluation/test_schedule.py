from __future__ import annotations

import math
import warnings

import pytest
import torch

from rd3.evaluation.schedule import multistep, rate_factor, two_part, zeta_cosine, zeta_linear
from rd3.protocol import resolve_protocol


@pytest.mark.parametrize(
    ("zeta", "epoch", "factor"),
    [(1, 0, 1), (1, 200, 0.5), (1, 399, 1.5e-5), (2, 0, 1), (2, 200, 0.854), (2, 399, 0.502)],
)
def test_published_points(zeta, epoch, factor):
    assert zeta_cosine(epoch, 400, zeta) == pytest.approx(factor, rel=0.03 if factor < 1e-3 else 1e-3)


def test_larger_zeta_keeps_larger_rates():
    for schedule in (zeta_cosine, zeta_linear):
        for epoch in range(1, 40):
            assert schedule(epoch, 40, 1) < schedule(epoch, 40, 1.5) < schedule(epoch, 40, 2)


def torchs(scheduler: type, epochs: int, **options) -> list[float]:
    """The rates of a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    stepping, rates = scheduler(optimizer, **options), []
    for _epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepping.step()
    return rates


def test_lines_and_steps_are_those_of_torch():
    line = torchs(torch.optim.lr_scheduler.LinearLR, 30, start_factor=1.0, end_factor=0.5, total_iters=30)
    assert [zeta_linear(epoch, 30, 2) for epoch in range(30)] == pytest.approx(line)
    steps = torchs(torch.optim.lr_scheduler.MultiStepLR, 30, milestones=[20, 25], gamma=0.2)
    assert [multistep(epoch, 30) for epoch in range(30)] == pytest.approx(steps)
    assert zeta_linear(29, 30, 0.5) == 0


def by_protocol(**fields) -> list[float]:
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=fields)
    return [rate_factor(protocol, epoch) for epoch in range(protocol.epochs)]


def test_drops_of_edc_and_dc_bench():
    found = by_protocol(epochs=1000, schedule="multistep", drop_at=[0.8, 0.9, 0.95], drop_factor=0.5)
    milestones = {"milestones": [800, 900, 950], "gamma": 0.5}
    assert found == pytest.approx(torchs(torch.optim.lr_scheduler.MultiStepLR, 1000, **milestones))
    for epochs, share in ((300, 0.504), (1000, 0.501)):
        found, factor, expected = (
            by_protocol(epochs=epochs + 1, schedule="multistep", drop_at=[share], drop_factor=0.1),
            1.0,
            [],
        )
        for epoch in range(epochs + 1):  # the published loop, which lowers the rate at the end of an epoch
            expected.append(factor)
            if epoch == epochs // 2 + 1:
                factor *= 0.1
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("zeta", [1.0, 2.0])
def test_the_two_parts_of_edc(zeta):
    def released(step: int, st: float, epochs: int) -> float:
        if step <= epochs * 5 / 6:
            return 0.5 * (1.0 + math.cos(math.pi * step / (st * epochs)))
        return 0.5 * (1.0 + math.cos(math.pi * 5 / (6 * st))) * (6 * epochs - 6 * step) / (6 * epochs)

    found = by_protocol(epochs=300, schedule="two_part", zeta=zeta)
    assert found == pytest.approx([released(epoch, zeta, 300) for epoch in range(300)])
    assert two_part(250, 300, 2.0) == pytest.approx(0.629, abs=1e-3)
    assert two_part(251, 300, 2.0) == pytest.approx(0.629 * 49 / 300, abs=1e-3)


def test_a_warm_up_from_a_start_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=5)
    rest = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    both, rates = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, rest], milestones=[5]), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of how it steps its schedulers
        for _epoch in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            both.step()
    assert by_protocol(epochs=20, zeta=1.0, warmup_epochs=5, warmup_start=0.01) == pytest.approx(rates)


def test_a_milestone_that_is_a_whole_epoch_is_that_epoch():
    """0.55 x 100 is 55.00000000000001 in floating point."""
    assert [multistep(epoch, 100, [0.55], 0.1) for epoch in (54, 55)] == [1, 0.1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "multistep", "two_part"])
def test_a_warm_up_comes_before_any_schedule(schedule):
    fields = {"epochs": 14, "warmup_epochs": 4, "schedule": schedule}
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=fields)
    plain = resolve_protocol(
        "rd3", factor=1, same_network=True, set_size=50, overrides=fields | {"epochs": 10, "warmup_epochs": 0}
    )
    assert [rate_factor(protocol, epoch) for epoch in range(4)] == [0.25, 0.5, 0.75, 1]
    assert [rate_factor(protocol, epoch) for epoch in range(4, 14)] == [
        rate_factor(plain, epoch) for epoch in range(10)
    ]


def test_the_usual_schedule_changes_no_key():
    usual = resolve_protocol("rd3", factor=1, same_network=True, set_size=50)
    stated = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides={"schedule": "cosine"})
    assert usual == stated and "schedule" not in usual.model_dump(exclude_defaults=True)
