"""Time to score a crop in RDED, beside a path after the published code.

Ours is the method's selection for one class.  The reference path is written after the structure of LINs-lab/RDED
``synthesize``: a DataLoader (without workers, so that one process does everything) turns every image into a tensor,
takes five ``RandomResizedCrop`` of it and normalises them; the unmodified fp32 teacher scores one crop of every image
at a time by the cross-entropy of the class.  The images are random and in memory, the ResNet-18 is untrained.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.bench import Bench, Job, Row, as_work
from benchmarks.published import Pictures
from benchmarks.students import untrained
from rd3.datasets import Dataset
from rd3.device import resolve_precision
from rd3.methods import Context
from rd3.methods.rded import RDED
from rd3.models import NormalisedNetwork, forward_cost
from rd3.recipe import Normalisation
from rd3.testing import ToyDataset, trial_recipe

CROPS, IMAGES = 5, 300
"""Crops of an image, and images of a class, that RDED scores."""
AIMS = {"cpu": 4.0, "cuda": 8.0}
"""Speed-up over the reference path to reach."""


def run(bench: Bench) -> list[Row]:
    """A row for 32 pixels; on a GPU also one for 224."""
    factors = {32: 1} if bench.on_cpu else {32: 1, 224: 2}
    return [
        scoring(bench, ToyDataset(classes=2, per_class=IMAGES, side=side, factor=factor))
        for side, factor in factors.items()
    ]


def crops_of(size: int, normalisation: Normalisation) -> transforms.Compose:
    """The published transform of a PIL image to (crops, 3, size, size), normalised."""
    crop = transforms.RandomResizedCrop(size, scale=(0.08, 1), ratio=(1, 1), antialias=True)
    one = transforms.Compose([crop, transforms.Normalize(normalisation.mean, normalisation.std)])
    several = transforms.Lambda(lambda pixels: torch.stack([one(pixels) for _ in range(CROPS)]))
    return transforms.Compose([transforms.ToTensor(), several])


def reference(ctx: Context, images: list[int], label: int, wanted: int) -> torch.Tensor:
    """The ``wanted`` crops of lowest loss, (wanted, 3, s, s), normalised; one per image, as published."""
    side, size = ctx.info.resolution, ctx.info.resolution // ctx.settings.factor
    originals = [ctx.dataset.original("train", index) for index in images]
    pictures = Pictures(originals, torch.full((len(images),), label), crops_of(size, ctx.info.normalisation))
    margin = (side - size) // 2
    pad = transforms.Pad((margin, margin, side - size - margin, side - size - margin))
    crops: torch.Tensor
    [(crops, _labels)] = DataLoader(pictures, batch_size=len(images))
    flat = crops.transpose(0, 1).flatten(0, 1).to(ctx.device)
    network = ctx.teachers[0].network
    with torch.no_grad():
        logits = torch.cat([network(pad(batch)) for batch in flat.split(len(images))])
    loss = -torch.log(torch.softmax(logits, 1))[:, label].view(CROPS, len(images))
    key_loss, key = loss.min(0)
    return crops[torch.arange(len(images)), key.cpu()][key_loss.argsort().cpu()[:wanted]]


def scoring(
    bench: Bench, dataset: Dataset, ipc: int = 10, images: int = IMAGES, teacher: NormalisedNetwork | None = None
) -> Row:
    """The row of scoring and selecting the crops of one class."""
    device, info = bench.device, dataset.info
    teacher = teacher or untrained(info, bench.network).to(device).eval().requires_grad_(False)
    recipe = trial_recipe("rded", dataset, ipc, mipc=images, num_crop=CROPS)
    method = RDED()
    settings = method.Settings.model_validate(recipe.settings)
    label, wanted = 0, ipc * info.factor**2
    ctx = Context(recipe, settings, info, dataset, (teacher,), device)
    chosen = ctx.class_indices(label)[:images].tolist()
    crops = len(chosen) * CROPS
    spent = bench.compare(
        {
            "ours": as_work(lambda: method._select(label, wanted, ctx), crops),
            "reference": as_work(lambda: reference(ctx, chosen, label, wanted), crops),
        }
    )
    words = f"{bench.network}, {info.resolution} px, factor {info.factor}, IPC {ipc}"
    gflop = 1e-9 * forward_cost(bench.network, info.num_classes, info.resolution).flops
    job = Job("patch_scoring", words, "crop", len(chosen), 1, gflop)
    dtype = resolve_precision(device, "auto")
    return bench.row(job, spent["ours"], spent["reference"], dtype=dtype, aim=AIMS[device.type])
