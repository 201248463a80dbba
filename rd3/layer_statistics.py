"""Statistics of a teacher's layers over the training images: collected once, matched by G-VBSM and EDC.

They are stored as ``statistics.safetensors`` and ``manifest.json`` (written last, so that its presence means complete).

Source: shaoshitong/G_VBSM_Dataset_Condensation ``Branch_*/recover/utils.py``; class-wise statistics from
shaoshitong/EDC ``Branch_*/recover``.

Deviations: crops are taken from the dataset's resized and centre-cropped images, as for teachers; sums are accumulated
in float64; EDC's released code swaps the patch means and patch variances of classes when it writes and reads them,
which is corrected here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from rd3.artifact import ArtifactManifest
from rd3.data_checks import check_training_images
from rd3.datasets import Dataset
from rd3.device import repeatable_kernels, usable_device
from rd3.errors import BadValue, DataMissing
from rd3.models import NormalisedNetwork
from rd3.models._matched import Moments, matched_layers
from rd3.recipe import Key, StatisticsRecipe
from rd3.seeding import generator
from rd3.stopwatch import Stopwatch
from rd3.store import sha256_file, write_atomically
from rd3.teacher.training import Images, augment

STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class LayerStatistics:
    """Moments of the inputs of a teacher's layers, by layer name in the bare network; float32."""

    teacher: Key
    patch: int
    """Side of a tile in pixels of the layer's input."""
    whole: Mapping[str, Moments]
    """(D,) and (T,): averages over batches of all training images, for convolutions only, as BatchNorm layers have
    running statistics."""
    classes: Mapping[str, Moments]
    """(C, D) and (C, T), for convolutions and BatchNorm layers: averages over the images of each class, with variances
    *within* an image."""


class StatisticsManifest(ArtifactManifest):
    """The content of ``manifest.json``."""

    noun: ClassVar[str] = "statistics"
    fix: ClassVar[str] = "fetch the statistics or collect them again"

    teacher: str
    """Key of the teacher."""
    images: int
    """Number of training images."""
    layers: int
    """Number of layers with statistics."""
    statistics_sha256: str
    """sha256 of ``statistics.safetensors``."""


def resized_to_tiles(maps: torch.Tensor, patch: int) -> torch.Tensor:
    """Resize (B, D, H, W), bilinear without antialias, to the next multiples of ``patch``; differentiable."""
    side = [-(-length // patch) * patch for length in maps.shape[-2:]]
    return maps if side == list(maps.shape[-2:]) else F.interpolate(maps, side, mode="bilinear", align_corners=False)


def tile_means(maps: torch.Tensor, patch: int) -> torch.Tensor:
    """Means of ``patch`` x ``patch`` tiles, row-major: (..., H, W) -> (..., T)."""
    *leading, height, width = maps.shape
    tiles = maps.reshape(*leading, height // patch, patch, width // patch, patch)
    return tiles.mean((-3, -1)).flatten(-2)


def spread_tiles(values: torch.Tensor, patch: int, height: int, width: int) -> torch.Tensor:
    """Assign every pixel the value of its tile: (..., T) -> (..., H, W)."""
    tiles: torch.Tensor = values.unflatten(-1, (height // patch, width // patch))
    return tiles.repeat_interleave(patch, -2).repeat_interleave(patch, -1)


def moments_of_images(maps: torch.Tensor, patch: int | None) -> Moments:
    """Moments of each image: (B, D, H, W) -> (B, D) and, with ``patch``, (B, T)."""
    # In two passes: torch's var_mean takes five times as long on a CPU.
    mean = maps.mean((2, 3))
    variance = (maps - mean[:, :, None, None]).square_().mean((2, 3))
    if patch is None:
        return Moments(mean, variance)
    maps = resized_to_tiles(maps, patch)
    patch_mean = tile_means(maps.mean(1), patch)
    centred = maps - spread_tiles(patch_mean, patch, *maps.shape[-2:])[:, None]
    return Moments(mean, variance, patch_mean, tile_means(centred.square_().mean(1), patch))


def collect(
    recipe: StatisticsRecipe,
    teacher: NormalisedNetwork,
    dataset: Dataset,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[float, str], None] = lambda fraction, note: None,
) -> dict[str, Any]:
    """Collect statistics in one pass over the training images in random order, and write the folder.

    Images are cropped and flipped as ``recipe.collection`` says, in the ways of teachers' training.  ``teacher`` is the
    recipe's, frozen, in eval mode, on ``device``.  Moments of all images are averages of the moments of batches,
    weighted by batch size; those of a class are averages over its images.  Returns the results for the ledger.  Raises
    :class:`BadValue`, :class:`ClassOrderError` or :class:`DataCorrupt` if recipe, teacher and dataset do not belong
    together, and :class:`DataMissing` for a class without images.
    """
    stopwatch = Stopwatch()
    device, out = usable_device(device), Path(out)
    check_training_images(recipe, dataset)
    if teacher.training:
        raise BadValue("Statistics need a teacher in eval mode, this one is in training mode.", "call `teacher.eval()`")
    images = Images(dataset, recipe.data.split, device)
    counts = _class_counts(images.labels, dataset)
    total = len(images.labels)
    order = torch.randperm(total, generator=generator(recipe.seed, "statistics", "order"))
    stream = generator(recipe.seed, "statistics", "augment")
    seen = 0
    sums = _Sums(teacher.network, recipe.collection.patch, len(counts))
    with torch.inference_mode(), repeatable_kernels(), sums:
        for batch in order.split(recipe.collection.batch_size):
            pixels, sums.labels = images.batch(batch)
            teacher(augment(pixels, recipe.collection, stream))
            seen += len(batch)
            progress(seen / total, f"images {seen}/{total}")
        tensors = sums.averages(total, counts)
    write_atomically(out / STATISTICS, save(tensors))
    written = sha256_file(out / STATISTICS)
    manifest = StatisticsManifest.of(
        recipe, teacher=recipe.teacher, images=total, layers=len(sums.layers), statistics_sha256=written
    )
    manifest.write(out)
    return {"images": total, "layers": len(sums.layers), **stopwatch.spent()}


def _class_counts(labels: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """(C,) number of images per class; raises :class:`DataMissing` for a class without images."""
    counts = torch.bincount(labels, minlength=dataset.info.num_classes)
    if not bool(counts.all()):
        label = int((counts == 0).nonzero()[0])
        raise DataMissing(
            f"Class {dataset.info.class_ids[label]} of {dataset.info.name} has no training image.",
            "use a dataset with images of every class",
        )
    return counts


class _Sums(ExitStack[None]):
    """Running sums of moments.  Inside ``with``, every forward pass adds a batch; set ``labels`` before each."""

    def __init__(self, network: nn.Module, patch: int, num_classes: int):
        super().__init__()
        self.layers = matched_layers(network)
        self.patch, self.num_classes = patch, num_classes
        self.labels = torch.empty(0, dtype=torch.int64)
        self._sums: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for name, layer in self.layers.items():
            self.enter_context(layer.register_forward_pre_hook(partial(self._add, name)))
        return self

    def _add(self, name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        convolution = isinstance(layer, nn.Conv2d)
        of_images = moments_of_images(inputs[0].float(), self.patch if convolution else None)
        for field, values in of_images._asdict().items():
            if values is not None:
                target = self._sum(f"{name}/class/{field}", values, rows=self.num_classes)
                target.index_add_(0, self.labels, values.double())
        if not convolution:
            return
        channels, tiles = of_images[:2], of_images[2:]
        for prefix, (mean, var) in (("", channels), ("patch_", tiles)):
            assert mean is not None and var is not None
            # For images of equal size: batch variance = mean variance within images + variance of means.
            var_of_means, overall = torch.var_mean(mean.double(), 0, correction=0)
            self._sum(f"{name}/whole/{prefix}mean", mean).add_(overall, alpha=len(mean))
            self._sum(f"{name}/whole/{prefix}var", var).add_(var_of_means + var.double().mean(0), alpha=len(var))

    def _sum(self, key: str, values: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        """The float64 sum ``key``, (rows, D) or (D,) for ``values`` of (B, D); initially zero."""
        if key not in self._sums:
            shape = values.shape[1:] if rows is None else (rows, *values.shape[1:])
            self._sums[key] = values.new_zeros(shape, dtype=torch.float64)
        return self._sums[key]

    def averages(self, total: int, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        """All averages as float32 on the CPU, by ``layer/whole|class/field``."""
        return {
            key: (value / (counts[:, None] if "/class/" in key else total)).float().cpu()
            for key, value in self._sums.items()
        }


def load(
    folder: Path, recipe: StatisticsRecipe, *, device: torch.device | str = "cpu", formerly: str | None = None
) -> LayerStatistics:
    """Load the statistics in ``folder`` onto ``device``.

    ``formerly`` is the recipe's former key, if they were collected under one (:mod:`rd3.upgrade`).  Raises
    :class:`ClassOrderError` for another class list, :class:`DataMissing` for missing files, and :class:`DataCorrupt`
    for other statistics or a file that does not match its manifest.
    """
    folder = Path(folder)
    manifest = StatisticsManifest.read(folder)
    manifest.check(folder, recipe, formerly)
    manifest.check_file(folder, STATISTICS, manifest.statistics_sha256)
    parts: dict[str, dict[str, dict[str, torch.Tensor]]] = {"whole": {}, "class": {}}
    for key, value in load_file(folder / STATISTICS, device=str(usable_device(device))).items():
        layer, part, field = key.rsplit("/", 2)
        parts[part].setdefault(layer, {})[field] = value
    whole, classes = ({layer: Moments(**fields) for layer, fields in part.items()} for part in parts.values())
    return LayerStatistics(recipe.teacher, recipe.collection.patch, whole, classes)
