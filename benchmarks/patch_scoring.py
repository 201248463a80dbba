"""What scoring a crop costs in RDED, beside a path after the published code.

    python benchmarks/patch_scoring.py [--side 32] [--ipc 10] [--images 300] [--rounds 3] [--device cpu]
        [--dataset cifar10 [--weights teacher.safetensors]]

Ours is the method's selection of one class.  The reference path is written after the structure of LINs-lab/RDED
``synthesize``: a DataLoader (of no workers, so that one process does all) turns every image into a tensor, takes five
``RandomResizedCrop`` of it and normalises them; the teacher as it is, fp32, takes them a crop of every image at a time;
the logarithm of the softmax is the score.  Both run in turn in one process, on one thread; process seconds on a CPU,
wall seconds elsewhere; the fastest of the rounds counts.  Without ``--dataset`` images are toys, with it those of a
dataset below $RD3_DATA; the teacher is a ResNet-18 of these weights, or untrained.

On a CPU that multiplies bf16 there is a row for ranking in bf16, as it is done there, and one for ranking in fp32, as
it is done elsewhere.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from pipelines.settings import session
from rd3.datasets import Dataset, open_dataset
from rd3.device import bf16_in_hardware, usable_device
from rd3.methods import METHODS, Context
from rd3.models import build_network
from rd3.seeding import generator
from rd3.testing import ToyDataset, trial_recipe

CROPS = 5


class Row(NamedTuple):
    """A case: seconds a crop, and how many times faster ours is."""

    case: str
    ours_s: float
    reference_s: float
    ratio: float


def teacher_of(dataset: Dataset, weights: Path | None, device: torch.device) -> nn.Module:
    """ResNet-18, frozen, in eval mode."""
    from safetensors.torch import load_file

    info = dataset.info
    network = build_network("resnet18", info.num_classes, info.resolution, info.normalisation, generator(0, "init"))
    if weights is not None:
        network.network.load_state_dict(load_file(weights))
    return network.to(device).eval().requires_grad_(False)


class OneClass(TorchDataset):
    """The images of a class as the published loader gives them: (crops, 3, s, s), normalised."""

    def __init__(self, dataset: Dataset, images: list[int], size: int):
        self.dataset, self.images = dataset, images
        constants = dataset.info.normalisation
        self.decoded = transforms.ToPILImage()
        self.to_tensor = transforms.ToTensor()
        self.crop = transforms.RandomResizedCrop(size, scale=(0.08, 1), ratio=(1, 1), antialias=True)
        self.normalise = transforms.Normalize(constants.mean, constants.std)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> torch.Tensor:
        image = self.decoded(self.dataset.original("train", self.images[place]))
        pixels = self.to_tensor(image)
        return torch.stack([self.normalise(self.crop(pixels)) for _ in range(CROPS)])


def reference(ctx: Context, images: list[int], label: int, wanted: int) -> torch.Tensor:
    """Key patches (wanted, 3, s, s), normalised."""
    side, size = ctx.info.resolution, ctx.info.resolution // ctx.settings.factor
    loader = DataLoader(OneClass(ctx.dataset, images, size), batch_size=len(images))
    before = (side - size) // 2
    pad = transforms.Pad((before, before, side - size - before, side - size - before))
    (crops,) = loader
    flat = crops.transpose(0, 1).flatten(0, 1).to(ctx.device)
    network = ctx.teachers[0].network
    with torch.no_grad():
        logits = torch.cat([network(pad(batch)) for batch in flat.split(len(images))])
    loss = -torch.log(torch.softmax(logits, 1))[:, label].view(CROPS, len(images))
    key_loss, key = loss.min(0)
    return crops[torch.arange(len(images)), key.cpu()][key_loss.argsort().cpu()[:wanted]]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one run: process seconds on a CPU, wall seconds on what works beside it."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.accelerator.synchronize()
    start = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - start


def scoring(
    dataset: Dataset, teacher: nn.Module, device: torch.device, ipc: int = 10, images: int = 300, rounds: int = 3
) -> list[Row]:
    """One class, scored and selected; a row for each precision that crops can be ranked in."""
    recipe = trial_recipe("rded", dataset, ipc, mipc=images, num_crop=CROPS)
    method = METHODS.get("rded")()
    settings = method.Settings.model_validate(recipe.settings)
    label, wanted = 0, ipc * settings.factor**2

    def context() -> Context:
        return Context(recipe, settings, dataset.info, dataset, (teacher,), device)

    kept = {True: context(), False: context()}
    chosen = kept[True].class_indices(label)[:images].tolist()

    def ours(bf16: bool) -> Callable[[], object]:
        def work() -> None:
            with mock.patch("rd3.methods._patch_scoring.bf16_in_hardware", lambda device: bf16):
                method._select(label, wanted, kept[bf16])

        return work

    precisions = [True, False] if bf16_in_hardware(device) else [False]
    paths = {"bf16" if bf16 else "fp32": ours(bf16) for bf16 in precisions}
    paths["reference"] = lambda: reference(kept[True], chosen, label, wanted)
    spent: dict[str, list[float]] = {name: [] for name in paths}
    for _round in range(rounds):
        for name, work in paths.items():
            spent[name].append(seconds(work, device) / (len(chosen) * CROPS))
    plain = min(spent.pop("reference"))
    info = f"ResNet-18, {dataset.info.resolution} px, factor {settings.factor}, {len(chosen)} images, IPC {ipc}"
    return [Row(f"{info}, ranked in {name}", min(each), plain, plain / min(each)) for name, each in spent.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=32, choices=[32, 64, 224])
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dataset")
    parser.add_argument("--weights", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = usable_device(chosen.device)
    if chosen.dataset is None:
        factor = 2 if chosen.side == 224 else 1
        dataset: Dataset = ToyDataset(classes=2, per_class=chosen.images, side=chosen.side, factor=factor)
    else:
        dataset = open_dataset(chosen.dataset, session().roots)
    teacher = teacher_of(dataset, chosen.weights, device)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {device}")
    for row in scoring(dataset, teacher, device, chosen.ipc, chosen.images, chosen.rounds):
        per_s = 1 / row.ours_s
        print(f"{row.case}: {per_s:.0f} crops/s, reference {1 / row.reference_s:.0f}, x {row.ratio:.2f}")


if __name__ == "__main__":
    main()
