"""A DiT in the latents of an autoencoder that is trained here, and the latents that it is trained on."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from rd3.datasets import Dataset, Roots, open_dataset
from rd3.diffusion.backbone import content_digest, open_backbone
from rd3.diffusion.codec import Autoencoder
from rd3.diffusion.cost import sizes_of
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.inputs import latent_inputs
from rd3.diffusion.training import train
from rd3.errors import BadValue
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.recipe import BackboneRecipe, BackboneTraining
from rd3.seeding import generator
from rd3.teacher.training import Images

from .conftest import shaken

SIZES = {"autoencoder": [8, 16], "width": 16, "depth": 2, "heads": 2, "patch": 4}


@pytest.fixture
def digits(tmp_path) -> Dataset:
    return open_dataset("digits", Roots(None, tmp_path / "home"))


@pytest.fixture
def model(info) -> DiT:
    made = DiT.create(SIZES, info, generator(0, "tiny"))
    shaken(made.transformer)
    return made.frozen()


def recipe(digits: Dataset, **changed) -> BackboneRecipe:
    training = BackboneTraining(epochs=1, batch_size=256, lr=1e-3, ema=0.5, warmup_steps=3, flip=False)
    fields = {"config": SIZES, "training": training, "autoencoder": training, "precision": "fp32"} | changed
    planned = backbone_recipe(backbone_role(digits.info, "dit"), digits.info, digits.fingerprint)
    return planned.model_copy(update=fields)


def test_it_works_in_latents_of_four_channels_and_guides_three(model: DiT, info, tmp_path):
    assert model.shape == (4, 16, 16) and model.guided_channels == 3
    model.save(tmp_path)
    again = DiT.load(tmp_path, info)
    assert again.shape == model.shape and content_digest(again) == content_digest(model)
    assert again.codec.decode(torch.randn(2, 4, 16, 16)).shape == (2, 3, 32, 32)


def test_both_stages_are_trained_and_the_latents_are_scaled_to_one(digits: Dataset, tmp_path):
    own = recipe(digits)
    notes: list[str] = []
    train(own, digits, tmp_path / "whole", progress=lambda fraction, note: notes.append(note.split()[0]))
    assert list(dict.fromkeys(notes)) == ["autoencoder", "transformer"]
    backbone = open_backbone(tmp_path / "whole", own, digits.info)
    pixels = digits.images("train", range(512)).float() / 255
    with torch.no_grad():
        latents = backbone.codec.encode(pixels, [generator(0, "latents")] * len(pixels))
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    AutoencoderKL.from_pretrained(tmp_path / "whole" / "vae")

    class Stopped(Exception):
        pass

    def stop(fraction: float, note: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(own, digits, tmp_path / "cut", progress=stop)
    train(own, digits, tmp_path / "cut")
    assert content_digest(open_backbone(tmp_path / "cut", own, digits.info)) == content_digest(backbone)


def test_the_plan_knows_its_latents_and_its_size(digits: Dataset, model: DiT, tmp_path):
    own = recipe(digits)
    model.save(tmp_path)
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert sizes_of(own).latent == 4 * 16 * 16
    assert sizes_of(own).file_bytes == pytest.approx(stored, rel=0.2)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_drawn_from_the_posterior_of_the_image_or_its_mirror(digits: Dataset, model: DiT, flip: bool):
    """Means and spreads over many draws, against the autoencoder's own answers."""
    codec = model.codec
    assert isinstance(codec, Autoencoder)
    images = Images(digits, "train", torch.device("cpu"))
    inputs, position = latent_inputs(images, flip, codec=codec), 7
    stream = generator(1, "draws")
    drawn = inputs(torch.full((4000,), position), stream)
    pixels = images.batch(torch.tensor([position]))[0].float() / 255
    with torch.no_grad():
        plain, mirrored = (codec.vae.encode(one * 2 - 1).latent_dist for one in (pixels, pixels.flip(3)))
    scale = codec.vae.config.scaling_factor
    if not flip:
        torch.testing.assert_close(drawn.mean(0), scale * plain.mean[0], rtol=0, atol=0.1)
        torch.testing.assert_close(drawn.std(0), scale * plain.std[0], rtol=0.1, atol=0)
        return
    mean = (plain.mean[0] + mirrored.mean[0]) / 2
    torch.testing.assert_close(drawn.mean(0), scale * mean, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"autoencoder": [12]}, "size autoencoder: 12 is not a multiple of 8"),
        ({"autoencoder": [8] * 7}, "32 pixels cannot be halved 6 times"),
        ({"patch": 5}, "size patch: 16 pixels are not a multiple of 5"),
    ],
)
def test_wrong_sizes_are_named(info, changed, message):
    with pytest.raises(BadValue, match=message):
        DiT.create(SIZES | changed, info, generator(0, "tiny"))


def test_an_autoencoder_without_training_is_refused(digits: Dataset, tmp_path):
    with pytest.raises(BadValue, match="no settings for training its autoencoder"):
        train(recipe(digits, autoencoder=None), digits, tmp_path)
