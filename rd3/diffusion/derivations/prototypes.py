"""``prototypes``: the centres of a k-means in the latents of each class's training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from rd3.augment import to_unit
from rd3.datasets import Dataset, DatasetInfo
from rd3.diffusion.cost import sizes_of
from rd3.diffusion.derivation import Derivation, Progress, register_derivation
from rd3.diffusion.guide import Member
from rd3.errors import BadValue, Unsupported
from rd3.lazy import torch
from rd3.models import Cost
from rd3.recipe import BackboneRecipe, DerivedRecipe
from rd3.values import PluginSettings

if TYPE_CHECKING:
    from rd3.diffusion.backbone import Backbone
    from rd3.teacher.training import Images

FILE = "prototypes.safetensors"
TENSOR = "prototypes"
BATCH = 16
"""Images encoded together; affects the latents by rounding alone, and is in no key."""


class PrototypesSettings(PluginSettings):
    """Settings of the clustering."""

    clusters: int = Field(ge=1)
    """Prototypes per class."""
    algorithm: Literal["minibatch", "kmeans"] = "minibatch"
    """``minibatch`` fits on parts of the latents of a class, one after the other; ``kmeans`` on all of them at once."""
    expand: int = Field(default=10, ge=1)
    """Latents of a part as a multiple of ``clusters``; without effect for ``kmeans``."""


@register_derivation("prototypes", version=1)
class Prototypes(Derivation):
    """Cluster the latents of each class with scikit-learn and keep the centres.

    Every training image is encoded once, with a sample from the VAE's posterior; a model on pixels clusters pixels.

    Sources: Su et al., "D4M: Dataset Distillation via Disentangled Diffusion Model", CVPR 2024; suduo94/D4M
    ``distillation/gen_prototype.py``.  ``kmeans``: as MGD3 finds its modes.

    Deviations: the last part of every class is fitted as well, and the first part has at least ``clusters`` latents
    (the released code uses the last part of one class alone, and finds no prototypes in classes smaller than a part);
    images are encoded class by class, in a random order within the class.
    """

    Settings = PrototypesSettings

    def derive(
        self, recipe: DerivedRecipe, settings: Any, backbone: Backbone, dataset: Dataset, out: Path, progress: Progress
    ) -> dict[str, Any]:
        from safetensors.torch import save_file

        from rd3.teacher.training import Images

        images, classes = Images(dataset, recipe.data.split, backbone.device), dataset.info.num_classes
        found = torch.empty((classes, settings.clusters, *backbone.shape))
        for label in range(classes):
            parts = _latents(label, images, backbone, recipe.seed)
            found[label] = torch.from_numpy(centres(parts, settings)).view_as(found[label])
            progress((label + 1) / classes, f"prototypes of class {label + 1}/{classes}")
        save_file({TENSOR: found}, out / FILE)
        return {"images": len(images.labels), "prototypes": classes * settings.clusters}

    def cost(self, settings: PrototypesSettings, info: DatasetInfo, forward: Cost) -> Cost:
        # An encoder of Stable Diffusion's size costs about as much as a pass through its denoiser.
        return info.train_count * forward

    def file_bytes(self, settings: PrototypesSettings, info: DatasetInfo, backbone: BackboneRecipe) -> int:
        return 4 * info.num_classes * settings.clusters * sizes_of(backbone).latent


def _latents(label: int, images: Images, backbone: Backbone, seed: int) -> Iterator[np.ndarray]:
    """(n, D) float32: the latents of a class in random order, a few at a time."""
    from rd3.device import repeatable_kernels
    from rd3.seeding import generator

    positions = (images.labels == label).nonzero()[:, 0].cpu()
    shuffled = positions[torch.randperm(len(positions), generator=generator(seed, "prototypes", "order", label))]
    for batch in shuffled.split(BATCH):
        streams = [generator(seed, "prototypes", "posterior", position) for position in batch.tolist()]
        with torch.no_grad(), repeatable_kernels():
            latents = backbone.codec.encode(to_unit(images.batch(batch)[0]), streams)
        yield latents.float().flatten(1).cpu().numpy()


def centres(latents: Iterator[np.ndarray], settings: PrototypesSettings) -> np.ndarray:
    """(K, D) float32: the centres of the latents of a class, which come as (n, D) float32.

    Raises :class:`Unsupported` for fewer than K latents.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    clusters = settings.clusters
    if settings.algorithm == "kmeans":
        points = np.concatenate(list(latents))
        _check_enough(len(points), clusters)
        return np.asarray(KMeans(clusters, random_state=0).fit(points).cluster_centers_, dtype=np.float32)
    size = settings.expand * clusters
    fitted = MiniBatchKMeans(clusters, random_state=0, n_init="auto", batch_size=size)
    for part in _parts(latents, size):
        if not hasattr(fitted, "cluster_centers_"):
            _check_enough(len(part), clusters)
        fitted.partial_fit(part)
    return np.asarray(fitted.cluster_centers_, dtype=np.float32)


def _parts(latents: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows, ``size`` at a time; the last part has what is left."""
    rows = chain.from_iterable(latents)
    while part := list(islice(rows, size)):
        yield np.stack(part)


def _check_enough(points: int, clusters: int) -> None:
    if points < clusters:
        raise Unsupported(f"A class has {points} training images, {clusters} prototypes need as many.")


def clusters_for(method: str, ipc: int, clusters: int | None) -> int:
    """Prototypes per class of a method's set, by default IPC; raises :class:`BadValue` unless they divide IPC."""
    if clusters is not None and ipc % clusters:
        raise BadValue(f"Method {method}, setting clusters: IPC {ipc} is not a multiple of {clusters}.")
    return clusters or ipc


def prototypes_of(folder: Path, members: Sequence[Member]) -> torch.Tensor:
    """(B, C, h, w): for image k of a class, the prototype k modulo the number of prototypes of its class."""
    from safetensors import safe_open

    with safe_open(folder / FILE, framework="pt") as stored:
        table = stored.get_slice(TENSOR)
        clusters = table.get_shape()[1]
        return torch.stack([table[label : label + 1, k % clusters][0] for label, k in members])
