"""Whether the memory of a recovery grows with the size of the set.

    python benchmarks/recovery_memory.py [--method dwa] [--ipc 5 --ipc 40] [--iterations 2] [--dataset imagenette-224]

A set at 224 pixels (an untrained ResNet-18, batches of ten) at two IPCs is generated with its parents, opened and drawn
as a contact sheet, each in a process of its own; a few iterations have the same peak as thousands.  The peak must grow
by less than half the bytes of the additional images.  The allocator is set to return memory at once: by default it
keeps freed memory, and peaks of equal blocks then differ by as much as the images take.  The images are those of a
dataset below $RD3_DATA, or else ten random ones over and over.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.students import untrained
from pipelines.settings import session
from rd3.datasets import Split, open_dataset
from rd3.device import configure_torch, peak_mib, reset_peak
from rd3.synthetic_set import SetOnDisk, contact_sheet
from rd3.testing import ToyDataset, trial_recipes, trial_set

CPU = torch.device("cpu")


class Repeated(ToyDataset):
    """Ten images of 224 pixels over and over, so that the memory of the data does not mask that of the set."""

    def __init__(self, per_class: int):
        super().__init__(classes=10, per_class=1, side=224)
        count = 10 * per_class
        self.info = self.info.model_copy(update={"train_count": count, "train_per_class": per_class})
        self._labels = np.arange(count) % 10

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        return super().images(split, [index % 10 for index in indices])


def peak_of_one(method: str, ipc: int, iterations: int, name: str | None) -> float:
    """Generate, open and draw one set at 224 pixels; returns the peak of this process in MiB."""
    configure_torch(1)
    dataset = Repeated(ipc) if name is None else open_dataset(name, session().roots)
    teacher = untrained(dataset.info, "resnet18").eval().requires_grad_(False)
    recipes = trial_recipes(method, dataset, ipc, iterations=iterations)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trial_set(recipes, dataset, [teacher], folder, folder / "made")
        reset_peak(CPU)
        made = SetOnDisk.open(folder / "made")
        contact_sheet(made, folder / "sheet.png")
    assert made.manifest.peak_mib is not None
    return max(made.manifest.peak_mib, peak_mib(CPU))


def memory(method: str, ipcs: list[int], iterations: int, name: str | None) -> None:
    peaks = []
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="0")  # of the processes started here
    for ipc in ipcs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks.append(process.submit(peak_of_one, method, ipc, iterations, name).result())
        images = ipc * 10 * 3 * 224**2 / 2**20
        print(f"{method} at IPC {ipc}: peak {peaks[-1]:.0f} MiB; its images are {images:.0f} MiB")
    grown, more = peaks[-1] - peaks[0], (ipcs[-1] - ipcs[0]) * 10 * 3 * 224**2 / 2**20
    print(f"grown by {grown:.1f} MiB for {more:.0f} MiB more images: {'met' if grown < more / 2 else 'NOT met'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--method", default="dwa")
    parser.add_argument("--ipc", type=int, action="append")
    parser.add_argument("--dataset")
    chosen = parser.parse_args()
    memory(chosen.method, chosen.ipc or [5, 40], chosen.iterations, chosen.dataset)
