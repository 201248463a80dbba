"""Streams: functions of their names, and no trace in the process-wide generator."""

from __future__ import annotations

import torch

from rd3.seeding import ForkedRNG, derive, generator, scoped


def draws(*names: object) -> list[float]:
    return torch.rand(4, generator=generator(*names)).tolist()


def test_a_stream_is_a_function_of_seed_and_names():
    assert draws(0, "order") == draws(0, "order")
    assert len({tuple(draws(*names)) for names in [(0, "order"), (1, "order"), (0, "augment"), (0, "order", 1)]}) == 4


def test_seeds_fit_torch():
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(100))


def test_scoped_puts_the_global_state_back():
    before = torch.get_rng_state()
    with scoped(generator(5, "init")):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with scoped(generator(5, "init")):
        assert torch.equal(torch.rand(3), first)


def test_layers_that_draw_themselves_get_a_stream_and_leave_no_trace():
    before = torch.get_rng_state()
    with ForkedRNG(torch.device("cpu"), 5, "dropout", 1):
        assert torch.rand(4).tolist() == draws(5, "dropout", 1)
    assert torch.equal(torch.get_rng_state(), before)
