"""Prototypes against plain calls of scikit-learn and a plain loop of the published scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.cluster import KMeans, MiniBatchKMeans

from rd3.diffusion.backbone import Backbone
from rd3.diffusion.derivations.prototypes import FILE, Prototypes, PrototypesSettings, clusters_for, prototypes_of
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.families.text_to_image import TextToImage
from rd3.errors import BadValue, Unsupported
from rd3.recipe import Data, DerivedRecipe
from rd3.seeding import generator
from rd3.testing import ToyDataset

DATA = ToyDataset(classes=3, per_class=21)
SIZES = {"autoencoder": [8, 8, 8], "unet": [8, 16], "heads": 2, "text_width": 16, "text_depth": 1, "length": 32}
PIXELS = {"width": 8, "depth": 1, "heads": 2, "patch": 8}


@pytest.fixture(scope="module", params=["dit", "text-to-image"])
def model(request: pytest.FixtureRequest) -> Backbone:
    stream = generator(0, "tiny")
    if request.param == "dit":
        return DiT.create(PIXELS, DATA.info, stream).frozen()
    return TextToImage.create(SIZES, DATA.info, stream).frozen()


def derived(model: Backbone, out: Path, dataset: ToyDataset = DATA, seed: int = 5, **settings: object) -> torch.Tensor:
    plan = PrototypesSettings.model_validate(settings)
    recipe = DerivedRecipe(
        data=Data(name="toy", fingerprint=dataset.fingerprint), classes=dataset.info.classes, resolution=32,
        step="prototypes", version=1, settings=plan.model_dump(), backbone="b" * 64, seed=seed,
    )  # fmt: skip
    out.mkdir(exist_ok=True)
    figures = Prototypes().derive(recipe, plan, model, dataset, out, lambda fraction, note: None)
    assert figures == {"images": dataset.info.train_count, "prototypes": dataset.info.num_classes * plan.clusters}
    return load_file(out / FILE)["prototypes"]


def shuffled_latents(model: Backbone, label: int, seed: int = 5) -> np.ndarray:
    """(n, D): the latents of a class in the order of the seed, encoded one by one."""
    positions = np.flatnonzero(DATA.labels("train") == label)
    order = torch.randperm(len(positions), generator=generator(seed, "prototypes", "order", label))
    rows = []
    for position in positions[order.numpy()]:
        image = DATA.images("train", [int(position)]).float() / 255
        if isinstance(model, TextToImage):
            posterior = model.vae.encode(image * 2 - 1).latent_dist
            stream = generator(seed, "prototypes", "posterior", position)
            noise = torch.randn(posterior.mean.shape, generator=stream)
            rows.append((posterior.mean + posterior.std * noise) * model.vae.config.scaling_factor)
        else:
            rows.append(image * 2 - 1)
    return torch.cat(rows).flatten(1).numpy()


def test_kmeans_is_scikit_learns_on_all_latents_of_a_class(model: Backbone, tmp_path: Path):
    found = derived(model, tmp_path, clusters=4, algorithm="kmeans")
    assert found.shape == (3, 4, *model.shape) and found.dtype == torch.float32
    for label in range(3):
        expected = KMeans(4, random_state=0).fit(shuffled_latents(model, label)).cluster_centers_
        assert np.allclose(found[label].flatten(1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("clusters", "expand", "fits"), [(2, 1, 11), (4, 2, 3), (3, 7, 1), (2, 50, 1)])
def test_mini_batches_follow_the_published_scheme(
    model: Backbone, tmp_path: Path, clusters: int, expand: int, fits: int
):
    found = derived(model, tmp_path, clusters=clusters, expand=expand)
    for label in range(3):
        fitted = MiniBatchKMeans(clusters, random_state=0, n_init="auto", batch_size=expand * clusters)
        waiting, calls = [], 0
        for latent in shuffled_latents(model, label):
            waiting.append(latent)
            if len(waiting) == expand * clusters:
                fitted.partial_fit(np.array(waiting))
                waiting, calls = [], calls + 1
        if waiting:  # what the released code forgets for all classes but one
            fitted.partial_fit(np.array(waiting))
            calls += 1
        assert calls == fits
        assert np.allclose(found[label].flatten(1).numpy(), fitted.cluster_centers_, atol=1e-4)


def test_prototypes_repeat_and_depend_on_the_seed(model: Backbone, tmp_path: Path):
    first = derived(model, tmp_path / "a", clusters=2, expand=2)
    assert torch.equal(first, derived(model, tmp_path / "b", clusters=2, expand=2))
    assert not torch.allclose(first, derived(model, tmp_path / "c", clusters=2, expand=2, seed=6))


@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch"])
def test_a_class_with_fewer_images_than_prototypes_is_refused(model: Backbone, tmp_path: Path, algorithm: str):
    with pytest.raises(Unsupported, match="A class has 21 training images, 22 prototypes need as many"):
        derived(model, tmp_path, clusters=22, algorithm=algorithm)


def test_members_get_the_prototype_of_their_number(model: Backbone, tmp_path: Path):
    found = derived(model, tmp_path, clusters=2)
    picked = prototypes_of(tmp_path, [(2, 1), (0, 0), (1, 3), (1, 2)])
    assert torch.equal(picked, torch.stack([found[2, 1], found[0, 0], found[1, 1], found[1, 0]]))


def test_prototypes_divide_ipc():
    assert clusters_for("d4m", 6, None) == 6 and clusters_for("d4m", 6, 3) == 3
    with pytest.raises(BadValue, match=r"Method d4m, setting clusters: IPC 6 is not a multiple of 4\."):
        clusters_for("d4m", 6, 4)
