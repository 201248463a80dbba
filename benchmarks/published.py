"""The reference path of post-evaluation, written by us after the structure of LINs-lab/RDED ``validation/main.py``.

fp32 and NCHW; every image goes through torchvision's transforms on its own, in a DataLoader; CutMix in place; the
teacher, with batch norms not folded and trainable weights, labels one batch at a time under ``no_grad``; optionally the
student's extra forward pass in train mode for the training accuracy; AdamW; the loss is read after every step.  Images
are PIL images in memory, where the published loader decodes a file for each.  torch's defaults decide on TF32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.transforms import functional

from rd3.datasets import DatasetInfo
from rd3.recipe import Normalisation

TEMPERATURE = 20.0


class ShufflePatches(nn.Module):
    """Permutes the columns of tiles of an image (3, s, s), then the rows; ``factor`` tiles per side."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        columns = self._strips(image)
        return self._strips(columns.transpose(1, 2)).transpose(1, 2)

    def _strips(self, image: torch.Tensor) -> torch.Tensor:
        width = image.shape[2] // self.factor  # the last strip also has what is left over
        strips = image.tensor_split([width * number for number in range(1, self.factor)], dim=2)
        return torch.cat([strips[number] for number in torch.randperm(self.factor)], dim=2)


class Pictures(TorchDataset[tuple[torch.Tensor, int]]):
    """Transformed PIL images with labels, like an ``ImageFolder``."""

    def __init__(self, images: Iterable[torch.Tensor], labels: torch.Tensor, transform: Any):
        """``images``: N of (3, s, s) uint8."""
        self.pictures = [functional.to_pil_image(image) for image in images]
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def train_transform(side: int, factor: int, normalisation: Normalisation) -> transforms.Compose:
    """The training transform of one PIL image; at factor 1 shuffle and crop run, but do not change the pixels."""
    return transforms.Compose(
        [
            transforms.ToTensor(),
            ShufflePatches(factor),
            transforms.RandomResizedCrop(side, scale=(1 / factor, 1), antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.Normalize(normalisation.mean, normalisation.std),
        ]
    )


def cutmix(images: torch.Tensor, lam: float, centre: tuple[int, int], partner: torch.Tensor) -> torch.Tensor:
    """CutMix in place: a box around ``centre`` (row, column), about 1 - ``lam`` of the area, is that of ``partner``.

    ``images`` (B, 3, H, W), ``partner`` (B,) indices.
    """
    height, width = images.shape[2:]
    cut = math.sqrt(1 - lam)
    half_high, half_wide = int(height * cut) // 2, int(width * cut) // 2
    top, bottom = max(centre[0] - half_high, 0), min(centre[0] + half_high, height)
    left, right = max(centre[1] - half_wide, 0), min(centre[1] + half_wide, width)
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return images


class PublishedLoop:
    """An endless training of a student on a set, step by step."""

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        *,
        batch: int,
        device: torch.device,
        extra_forward: bool,
        workers: int = 0,
    ):
        """``teacher`` and ``student`` are bare networks, which take normalised pixels."""
        self.teacher = teacher.to(device).eval().requires_grad_(True)
        self.student = student.to(device).train()
        self.device, self.extra_forward = device, extra_forward
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3, weight_decay=0.01)
        self.loss_of = nn.KLDivLoss(reduction="batchmean")
        self.loss = 0.0
        transform = train_transform(images.shape[-1], info.factor, info.normalisation)
        loader = DataLoader(
            Pictures(images, labels, transform),
            batch_size=batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step(self) -> None:
        images, labels = (each.to(self.device) for each in next(self._batches))
        centre = (int(torch.randint(images.shape[2], ())), int(torch.randint(images.shape[3], ())))
        partner = torch.randperm(len(images), device=self.device)
        with torch.no_grad():
            mixed = cutmix(images, float(torch.rand(())), centre, partner)
            if self.extra_forward:
                (self.student(mixed).argmax(1) == labels).sum().item()
            soft = F.softmax(self.teacher(mixed) / TEMPERATURE, dim=1)
        self.optimizer.zero_grad()
        loss = self.loss_of(F.log_softmax(self.student(mixed) / TEMPERATURE, dim=1), soft)
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()

    def steps(self, count: int) -> int:
        """Take ``count`` steps; returns ``count``, as a :data:`benchmarks.bench.Work` does."""
        for _step in range(count):
            self.step()
        return count


def validate(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, normalisation: Normalisation, device: torch.device
) -> int:
    """Number of correct predictions of a bare network, with the transforms of the published validation image by image.

    ``images`` (N, 3, s, s) uint8.  At 32 pixels the resize to 32 and the crop change no pixel.
    """
    side = images.shape[-1]
    transform = transforms.Compose(
        [
            transforms.Resize(side // 7 * 8, antialias=True),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(normalisation.mean, normalisation.std),
        ]
    )
    network.eval()
    with torch.no_grad():
        return sum(
            int((network(pixels.to(device)).argmax(1).cpu() == own).sum())
            for pixels, own in DataLoader(Pictures(images, labels, transform), batch_size=100)
        )
