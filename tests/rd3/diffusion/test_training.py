"""Training of a small DiT: it learns, resumes bit for bit, and its folder opens in diffusers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel

from rd3.datasets import Dataset, Roots, open_dataset
from rd3.diffusion.averaging import AveragedTraining
from rd3.diffusion.backbone import BackboneManifest, content_digest, open_backbone
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.training import CHECKPOINT, LOCAL, train
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.recipe import BackboneRecipe, BackboneTraining

from .conftest import SIZES


@pytest.fixture
def digits(tmp_path) -> Dataset:
    return open_dataset("digits", Roots(None, tmp_path / "home"))


def recipe(digits: Dataset, **changed) -> BackboneRecipe:
    training = BackboneTraining(epochs=2, batch_size=256, lr=1e-3, ema=0.5, warmup_steps=3, flip=False)
    fields = {"config": SIZES, "training": training, "precision": "fp32", "seed": 3} | changed
    planned = backbone_recipe(backbone_role(digits.info, "dit"), digits.info, digits.fingerprint)
    return planned.model_copy(update=fields)


class Stopped(Exception):
    pass


def test_it_resumes_bit_for_bit_and_writes_what_diffusers_opens(digits: Dataset, tmp_path):
    own = recipe(digits)
    notes: list[str] = []
    result = train(own, digits, tmp_path / "whole", progress=lambda fraction, note: notes.append(note))
    assert not (tmp_path / "whole" / CHECKPOINT).exists()

    def stop(fraction: float, note: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(own, digits, tmp_path / "cut", progress=stop)
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    resumed = train(own, digits, tmp_path / "cut")
    whole, cut = (open_backbone(tmp_path / name, own, digits.info) for name in ("whole", "cut"))
    assert content_digest(whole) == content_digest(cut)
    assert resumed["final_loss"] == result["final_loss"]
    assert notes[-1].startswith("transformer epoch 2/2, loss ")

    manifest = BackboneManifest.read(tmp_path / "whole")
    assert manifest.origin == LOCAL and manifest.content == content_digest(whole)
    assert [row["epoch"] for row in manifest.curve["transformer"]] == [1, 2]
    assert manifest.curve["transformer"][1]["loss"] == result["final_loss"]
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "whole" / "transformer").eval()
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([5, 700]), torch.tensor([2, 10])
    with torch.no_grad():
        assert torch.equal(theirs(x, timestep=t, class_labels=y).sample, whole.denoise(x, t, y))


def test_embedders_are_one_for_all_blocks_and_saved_as_copies(dit: DiT, info, tmp_path):
    blocks = dit.transformer.transformer_blocks
    assert all(block.norm1.emb is blocks[0].norm1.emb for block in blocks)
    dit.save(tmp_path)
    stored = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    assert sum(value.numel() for value in stored.parameters()) > dit.size
    again = DiT.load(tmp_path, info)
    assert again.size == dit.size and content_digest(again) == content_digest(dit)


def test_embedders_that_differ_stay_apart(dit: DiT, info, tmp_path):
    dit.save(tmp_path)
    stored = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    with torch.no_grad():
        stored.transformer_blocks[2].norm1.emb.class_embedder.embedding_table.weight[0, 0] += 1
    stored.save_pretrained(tmp_path / "transformer")
    blocks = DiT.load(tmp_path, info).transformer.transformer_blocks
    assert [block.norm1.emb is blocks[0].norm1.emb for block in blocks] == [True, True, False, True]


def test_averages_are_the_exponential_moving_average(digits: Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch):
    seen: list[torch.Tensor] = []
    step = AveragedTraining.step

    def watched(self, loss, lr):
        step(self, loss, lr)
        seen.append(self.parameters["0.proj_out_2.bias"].detach().clone())

    monkeypatch.setattr(AveragedTraining, "step", watched)
    own = recipe(digits)
    train(own, digits, tmp_path)
    expected = torch.zeros_like(seen[0])  # published initialisation
    for value in seen:
        expected = 0.5 * expected + 0.5 * value
    found = open_backbone(tmp_path, own, digits.info).transformer.proj_out_2.bias
    assert len(seen) == 12 and torch.allclose(found, expected, atol=1e-7)


def test_the_learning_rate_warms_up_and_the_loss_is_a_mean_over_images(
    digits: Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    rates: list[float] = []
    losses: list[float] = []
    step = AveragedTraining.step

    def watched(self, loss, lr):
        step(self, loss, lr)
        rates.append(lr)
        losses.append(float(loss.detach()))

    monkeypatch.setattr(AveragedTraining, "step", watched)
    train(recipe(digits), digits, tmp_path)
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, *[1e-3] * 10])
    # Every image counts alike, also those of the last batch, which is smaller.
    sizes = [256] * 5 + [len(digits.labels("train")) - 5 * 256]
    rows = BackboneManifest.read(tmp_path).curve["transformer"]
    expected = [np.average(losses[:6], weights=sizes), np.average(losses[6:], weights=sizes)]
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SIZES | {"width": 15}, "width: 15 is not a multiple of 2 heads"),
        (SIZES | {"patch": 5}, "patch: 32 pixels are not a multiple of 5"),
        (SIZES | {"depht": 4}, "depht: Extra inputs are not permitted"),
    ],
)
def test_sizes_that_do_not_fit(digits: Dataset, tmp_path, config, sentence: str):
    with pytest.raises(BadValue, match=sentence):
        train(recipe(digits, config=config), digits, tmp_path)


def test_another_backbone_or_class_list_is_refused(digits: Dataset, tmp_path):
    own = recipe(digits)
    with pytest.raises(DataMissing, match=r"holds no backbone"):
        open_backbone(tmp_path, own, digits.info)
    train(own, digits, tmp_path)
    with pytest.raises(DataCorrupt, match=r"holds backbone .*, expected"):
        open_backbone(tmp_path, recipe(digits, seed=4), digits.info)
    other = digits.info.model_copy(update={"class_ids": digits.info.class_ids[::-1]})
    with pytest.raises(ClassOrderError, match="has class list"):
        open_backbone(tmp_path, own, other)
    shutil.copy(tmp_path / "scheduler" / "scheduler_config.json", tmp_path / "backbone.json")
    with pytest.raises(DataCorrupt, match=r"is not a backbone manifest"):
        open_backbone(tmp_path, own, digits.info)
