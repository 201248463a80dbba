"""What an iteration of recovery costs, ingredient by ingredient, and of several blocks at once.

    python benchmarks/side_by_side.py [--side 32] [--batch 10] [--blocks 10] [--rounds 5] [--iterations 2]
        [--device cpu] [--network resnet18]

SRe2L in fp32, without TF32.  The reference path is ours, after the structure of VILA-Lab/SRe2L ``data_synthesis.py``:
NCHW, forward hooks with ``mean`` and ``var``, weights that require gradients, one batch after the other.  All paths run
in turn in one process, on one thread; process seconds on a CPU, wall seconds elsewhere, per iteration of one block; the
fastest of the rounds counts.  The network is untrained, the images are toys.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rd3.device import repeatable_kernels, usable_device
from rd3.methods import METHODS, Block, Context
from rd3.methods._recovery import BatchNormLoss, PixelSpace, cosine
from rd3.models import build_network
from rd3.seeding import generator
from rd3.testing import ToyDataset, trial_recipe

Loop = Callable[[int], None]


class Row(NamedTuple):
    """A case: seconds an iteration of one block, and how many times faster ours is."""

    case: str
    ours_s: float
    reference_s: float
    ratio: float


class PlainStatistics:
    """The BatchNorm term as one writes it down."""

    def __init__(self, network: nn.Module):
        self.terms: dict[nn.Module, torch.Tensor] = {}
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.weights = {layer: 1.0 if number else 10.0 for number, layer in enumerate(layers)}
        for layer in layers:
            layer.register_forward_hook(self.measure)

    def measure(self, layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        self.terms[layer] = torch.norm(layer.running_var - variance) + torch.norm(layer.running_mean - mean)

    def value(self) -> torch.Tensor:
        return sum(self.weights[layer] * term for layer, term in self.terms.items())


def plain_loop(network: nn.Module, statistics, space: PixelSpace, settings, batch: int, side: int) -> Loop:
    """SRe2L as one writes it down, one batch."""
    device = space.mean.device
    labels, stream = torch.arange(batch, device=device), torch.Generator().manual_seed(0)
    low, high = -space.mean / space.std, (1 - space.mean) / space.std

    def run(iterations: int) -> None:
        images = torch.randn((batch, 3, side, side), generator=stream).to(device).requires_grad_(True)
        adam = torch.optim.Adam([images], lr=settings.lr, betas=(0.5, 0.9))
        for iteration in range(iterations):
            adam.param_groups[0]["lr"] = settings.lr * cosine(iteration, iterations)
            shifts = torch.randint(0, settings.jitter + 1, (2,), generator=stream).tolist()
            adam.zero_grad()
            logits = network(torch.roll(images, shifts, (2, 3)))
            loss = F.cross_entropy(logits, labels) + settings.bn_weight * statistics.value()
            loss.backward()
            adam.step()
            images.data = torch.minimum(torch.maximum(images.data, low), high)

    return run


def seconds(loop: Loop, iterations: int, device: torch.device) -> float:
    """An iteration takes."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    loop(iterations)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return (clock() - start) / iterations


def iteration(
    device: torch.device,
    network: str = "resnet18",
    side: int = 32,
    batch: int = 10,
    blocks: int = 10,
    rounds: int = 5,
    iterations: int = 2,
) -> list[Row]:
    """A row for every ingredient, then for the method itself, one block and several at once."""
    dataset = ToyDataset(classes=batch, per_class=1, side=side)
    built = build_network(network, batch, side, dataset.info.normalisation, generator(0, "teacher")).to(device)
    teacher = built.eval().requires_grad_(False)
    method, space = METHODS.get("sre2l")(), PixelSpace.of(teacher)
    recipe = trial_recipe("sre2l", dataset, blocks, batch_classes=batch)
    settings = method.Settings.model_validate({**recipe.settings, "crop_scale_min": None, "flip": False})

    def plain(trainable: bool, own_statistics: bool) -> Loop:
        bare = copy.deepcopy(teacher.network).requires_grad_(trainable)
        statistics = BatchNormLoss(bare, 10.0).__enter__() if own_statistics else PlainStatistics(bare)
        return plain_loop(bare, statistics, space, settings, batch, side)

    def ours(teacher: nn.Module, count: int) -> Loop:
        made = [Block(k, tuple((label, k) for label in range(batch))) for k in range(count)]

        def run(iterations: int) -> None:
            own = settings.model_copy(update={"iterations": iterations})
            method.make_many(made, Context(recipe, own, dataset.info, dataset, (teacher,), device))

        return run

    last = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    paths = {
        "reference": (plain(True, False), 1),
        "frozen weights": (plain(False, False), 1),
        "frozen weights, moments in a single pass": (plain(False, True), 1),
        "ours": (ours(teacher, 1), 1),
        "ours, channels last": (ours(last, 1), 1),
        f"ours, {blocks} blocks at once": (ours(teacher, blocks), blocks),
    }
    spent: dict[str, list[float]] = {name: [] for name in paths}
    with repeatable_kernels():
        for loop, _count in paths.values():
            loop(1)
        for turn in range(rounds):
            names = list(paths)[turn % len(paths) :] + list(paths)[: turn % len(paths)]
            for name in names:
                loop, count = paths[name]
                spent[name].append(seconds(loop, iterations, device) / count)
    fastest = {name: min(each) for name, each in spent.items()}
    plain_s = fastest.pop("reference")
    case = f"SRe2L iteration, {network}, {side} px, batch {batch}"
    return [Row(f"{case}: {name}", each, plain_s, plain_s / each) for name, each in fastest.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="resnet18")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = usable_device(chosen.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}")
    sizes = {name: getattr(chosen, name) for name in ("side", "batch", "blocks", "rounds", "iterations")}
    for row in iteration(device, chosen.network, **sizes):
        print(f"{row.case}: {1e3 * row.ours_s:.2f} ms, reference {1e3 * row.reference_s:.2f} ms, x {row.ratio:.2f}")


if __name__ == "__main__":
    main()
