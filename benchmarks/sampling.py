"""Sampling an image from a diffusion model: in batches, beside one image at a time as the published codes do.

Both paths are our own sampler with DDPM, guidance 4 and the same noise for each image; only the batch size differs.
The models are untrained: the DiT that RD3 trains at 32 pixels, and on a GPU one of the size of DiT-B/2 on the latents
of 256 pixels.  The note has the peak memory at both batch sizes: of tensors on a GPU, of the whole process on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from benchmarks.bench import Bench, Job, Row, Work
from rd3.device import autocast, peak_mib, reset_peak, resolve_precision
from rd3.diffusion.backbone import Backbone
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.sampler import sample
from rd3.methods._diffusion import BATCH, BATCH_ELSEWHERE
from rd3.seeding import generator
from rd3.testing import ToyDataset


class Size(NamedTuple):
    name: str
    side: int
    config: dict[str, object]


SMALL = Size("a DiT of width 256 and depth 8 on pixels", 32, {"width": 256, "depth": 8, "heads": 4, "patch": 2})
MIDDLE = Size(
    "a DiT of width 768 and depth 12 on latents",
    256,
    {"width": 768, "depth": 12, "heads": 12, "patch": 2, "autoencoder": (8, 8, 8, 8)},
)


def run(bench: Bench) -> list[Row]:
    """A row for each model."""
    if bench.on_cpu:
        return [_row(bench, SMALL, steps=2)]
    return [_row(bench, SMALL, steps=10), _row(bench, MIDDLE, steps=10)]


def _row(bench: Bench, size: Size, steps: int) -> Row:
    batch = BATCH.get(bench.device.type, BATCH_ELSEWHERE)
    precision = "fp32" if bench.on_cpu else resolve_precision(bench.device, "auto")
    info = ToyDataset(classes=10, per_class=1, side=size.side).info
    model = DiT.create(size.config, info, generator(0, "benchmark")).to(bench.device).frozen()

    def work(at_once: int, images: int) -> Work:
        def some() -> int:
            for first in range(0, images, at_once):
                draw(model, range(first, first + at_once), steps, precision)
            return images

        return some

    paths = {"batch": work(batch, batch), "one": work(1, max(2, batch // 8))}
    spent = bench.compare(paths)
    peaks = {}
    for at_once in (1, batch):
        reset_peak(bench.device)
        work(at_once, at_once)()
        peaks[at_once] = peak_mib(bench.device)
    note = f"{steps} steps; peak memory {peaks[1]:.0f} MiB at batch 1, {peaks[batch]:.0f} MiB at {batch}"
    job = Job("sampling", f"{size.name}, {size.side} px", "image", batch, images=1)
    return bench.row(job, spent["batch"], spent["one"], dtype=precision, layout="NCHW", note=note)


def draw(model: Backbone, numbers: range, steps: int, precision: str) -> torch.Tensor:
    """Sample these images (latents or pixels); image n has class n (modulo the classes) and noise of its own."""
    labels = torch.tensor([number % model.info.num_classes for number in numbers])
    members = [(int(label), number) for label, number in zip(labels, numbers, strict=True)]
    streams = [generator(0, "image", number) for number in numbers]
    with autocast(model.device, precision):
        return sample(
            model, model.scheduler("ddpm"), model.conditions(labels), streams, members, steps=steps, guidance=4.0
        )
