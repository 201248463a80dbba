from __future__ import annotations

import pytest
import torch

from rd3.evaluation.schedule import multistep, rate_factor, zeta_cosine, zeta_linear
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


@pytest.mark.parametrize("schedule", ["cosine", "linear", "multistep"])
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
