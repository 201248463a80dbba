"""Time of an iteration of SRe2L, optimisation by optimisation, and of several blocks at once.

fp32, without TF32, and without crop and flip in both paths.  The reference path is ours, after the structure of
VILA-Lab/SRe2L ``data_synthesis.py``: NCHW, forward hooks with ``mean`` and ``var``, weights that require gradients, one
batch after the other.  The network is untrained, the images are toys.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.bench import Bench, Job, Row, Work, as_work
from benchmarks.students import memory_format, untrained
from rd3.device import repeatable_kernels
from rd3.methods import Block, Context
from rd3.methods._bn_matching import MatchingSettings
from rd3.methods._recovery import BatchNormLoss, PixelSpace, cosine
from rd3.methods.sre2l import SRe2L
from rd3.models import NormalisedNetwork, forward_cost
from rd3.testing import ToyDataset, trial_recipe

AIMS = {("cpu", 32): 1.7, ("cuda", 32): 5.0, ("cuda", 224): 3.0}
"""Speed-up to reach by device and pixels, as the method makes sets: one block at a time; ten on a GPU at 32 pixels."""


def run(bench: Bench) -> list[Row]:
    """Rows for 32 pixels and batches of 10; on a GPU also for 224 pixels and batches of 100."""
    if bench.on_cpu:
        return iteration(bench, 32, 10, 2, iterations=2)
    return [*iteration(bench, 32, 10, 10, iterations=60), *iteration(bench, 224, 100, 1, iterations=3)]


class PlainStatistics:
    """The BatchNorm loss in its direct form: L2 distances of batch and running statistics, summed over layers."""

    def __init__(self, network: nn.Module):
        self.terms: dict[nn.BatchNorm2d, torch.Tensor] = {}
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.weights = {layer: 1.0 if number else 10.0 for number, layer in enumerate(layers)}
        for layer in layers:
            layer.register_forward_hook(self.measure)

    def measure(self, layer: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)
        self.terms[layer] = torch.norm(layer.running_var - variance) + torch.norm(layer.running_mean - mean)

    def value(self) -> torch.Tensor:
        return cast("torch.Tensor", sum(self.weights[layer] * term for layer, term in self.terms.items()))


def plain_recovery(
    network: nn.Module,
    statistics: PlainStatistics | BatchNormLoss,
    space: PixelSpace,
    settings: MatchingSettings,
    batch: int,
    side: int,
) -> None:
    """SRe2L in its direct form, for one batch of images."""
    device = space.mean.device
    labels, stream = torch.arange(batch, device=device), torch.Generator().manual_seed(0)
    low, high = -space.mean / space.std, (1 - space.mean) / space.std
    images = torch.randn((batch, 3, side, side), generator=stream).to(device).requires_grad_(True)
    adam = torch.optim.Adam([images], lr=settings.lr, betas=(0.5, 0.9))
    for iteration in range(settings.iterations):
        adam.param_groups[0]["lr"] = settings.lr * cosine(iteration, settings.iterations)
        shifts = torch.randint(0, settings.jitter + 1, (2,), generator=stream).tolist()
        adam.zero_grad()
        logits = network(torch.roll(images, shifts, (2, 3)))
        loss = F.cross_entropy(logits, labels) + settings.bn_weight * statistics.value()
        loss.backward()
        adam.step()
        images.data = torch.minimum(torch.maximum(images.data, low), high)


def iteration(bench: Bench, side: int, batch: int, blocks: int, iterations: int) -> list[Row]:
    """A row for each optimisation, then for the method itself with one block and with several at once."""
    device, network = bench.device, bench.network
    dataset = ToyDataset(classes=batch, per_class=1, side=side)
    teacher = untrained(dataset.info, network).to(device).eval().requires_grad_(False)
    method, space = SRe2L(), PixelSpace(teacher)
    recipe = trial_recipe("sre2l", dataset, blocks, batch_classes=batch)
    changes = {"crop_scale_min": None, "flip": False, "iterations": iterations}
    settings = method.Settings.model_validate({**recipe.settings, **changes})

    def plain(trainable: bool, own_statistics: bool) -> Work:
        bare = copy.deepcopy(teacher.network).requires_grad_(trainable)
        statistics = BatchNormLoss(bare, 10.0).__enter__() if own_statistics else PlainStatistics(bare)
        return as_work(partial(plain_recovery, bare, statistics, space, settings, batch, side), iterations)

    def ours(teacher: NormalisedNetwork, count: int) -> Work:
        made = [Block(k, tuple((label, k) for label in range(batch))) for k in range(count)]
        own = partial(Context, recipe, settings, dataset.info, dataset, (teacher,), device)  # a new one for each run
        return as_work(lambda: method.make_many(made, own()), iterations * count)

    paths = {
        "reference": plain(True, False),
        "frozen weights": plain(False, False),
        "frozen weights, moments in a single pass": plain(False, True),
        "ours": ours(teacher, 1),
        "ours, channels last": ours(copy.deepcopy(teacher).to(memory_format=torch.channels_last), 1),
    }
    if blocks > 1:
        paths[f"ours, {blocks} blocks at once"] = ours(teacher, blocks)
    usual = method.blocks_at_once(dataset.info, device)
    aimed = f"ours, {usual} blocks at once" if usual > 1 else "ours"
    with repeatable_kernels():
        spent = bench.compare(paths)
    reference = spent.pop("reference")
    gflop = 2e-9 * batch * forward_cost(network, batch, side).flops
    rows = []
    for name, each in spent.items():
        job = Job("recovery", f"{network}, {side} px: {name}", "iteration of a block", batch, batch, gflop)
        aim = AIMS.get((device.type, side)) if name == aimed else None
        form = "channels last" if "last" in name else memory_format(teacher) if "ours" in name else "NCHW"
        rows.append(bench.row(job, each, reference, dtype="fp32", layout=form, aim=aim))
    return rows
