"""The simulated GPU refuses what a GPU refuses, and computes what the CPU computes."""

from __future__ import annotations

import copy

import pytest
import torch
from simulated_gpu import OtherDevice, simulated_gpu
from torch import nn


@pytest.fixture(autouse=True)
def gpu():
    """Simulated even where the machine has one."""
    with simulated_gpu():
        yield


def test_operands_on_two_devices_are_refused():
    here, there = torch.rand(3), torch.rand(3, device="cuda")
    with pytest.raises(OtherDevice, match="add"):
        here + there
    with pytest.raises(OtherDevice, match="linear"):
        nn.Linear(3, 2)(there)
    with pytest.raises(OtherDevice, match="stack"):
        torch.stack([here, there])
    with pytest.raises(OtherDevice, match="getitem"):
        here[torch.tensor([0, 1], device="cuda")]
    with pytest.raises(OtherDevice, match="setitem"):
        there[torch.tensor([0, 1], device="cuda")] = here[:2]


def test_what_torch_allows_is_allowed():
    here, there = torch.rand(3), torch.rand(3, device="cuda")
    assert (there * torch.tensor(2.0)).device == torch.device("cuda", 0)
    assert there[torch.tensor([2, 0])].is_cuda
    assert here[torch.tensor(1, device="cuda")].device.type == "cpu"
    there[:] = here
    assert torch.equal(there.cpu(), here)
    there.copy_(here + 1)
    assert torch.equal(there.cpu(), here + 1)
    assert torch.empty(3, device="meta").device.type == here.to("meta").device.type == "meta"


def test_numpy_and_generators_are_of_one_device():
    there = torch.rand(3, device="cuda")
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    assert there.cpu().numpy().shape == (3,)
    with pytest.raises(OtherDevice, match="generator"):
        torch.rand(3, generator=torch.Generator(), device="cuda")
    with pytest.raises(OtherDevice, match="generator"):
        torch.rand(3, generator=torch.Generator("cuda"))


def test_the_device_has_a_generator_of_its_own():
    here, there = torch.get_rng_state(), torch.cuda.get_rng_state()
    nn.functional.dropout(torch.ones(8, device="cuda"))
    assert torch.equal(torch.get_rng_state(), here)
    assert not torch.equal(torch.cuda.get_rng_state(), there)


def stepping(device: str):
    """A network with a running statistic, and a step of its training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def step(images: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return network, step


def test_a_training_is_that_of_the_cpu_to_the_bit():
    batches, (here, step_here), (there, step_there) = torch.rand(5, 6, 4), stepping("cpu"), stepping("cuda")
    assert all(isinstance(weight, nn.Parameter) and weight.is_cuda for weight in there.parameters())
    for batch in batches:
        assert torch.equal(step_here(batch), step_there(batch.cuda()).cpu())
    again = copy.deepcopy(there)
    for one, other in zip(here.state_dict().values(), again.cpu().state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_graph_repeats_the_operations_and_not_the_python_around_them():
    batches, (plain, step) = torch.rand(5, 6, 4, device="cuda"), stepping("cuda")
    captured, captured_step = stepping("cuda")
    calls = []
    for batch in batches[:2]:
        step(batch)
        captured_step(batch)
    images, graph = torch.empty_like(batches[0]), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured_step(images)
        calls.append(1)
    for batch in batches[2:]:
        images.copy_(batch)
        graph.replay()
        assert torch.equal(loss.cpu(), step(batch).cpu())
    assert calls == [1]
    for one, other in zip(plain.state_dict().values(), captured.state_dict().values(), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@pytest.mark.parametrize("waiting", [torch.Tensor.tolist, torch.Tensor.cpu, lambda x: x[x > 0], lambda x: x.to("cpu")])
def test_nothing_waits_for_the_device_in_a_capture(waiting):
    there = torch.rand(3, device="cuda")
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        waiting(there)


def test_torch_is_as_before_afterwards():
    before = torch.cuda.is_available, torch.Generator
    with simulated_gpu():
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available, torch.Generator) == before
