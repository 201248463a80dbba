"""Collected statistics against a pass that keeps everything, and the checks of their folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.layer_statistics import STATISTICS, collect, load, resized_to_tiles, tile_means
from rd3.models._matched import matched_layers
from rd3.recipe import CollectionSettings, Data, StatisticsRecipe
from rd3.seeding import generator
from rd3.testing import ToyDataset, toy_teacher

TOY = ToyDataset(side=16, per_class=7)
PLAIN = CollectionSettings(patch=4, crop="none", flip=False, batch_size=5)


def _recipe(collection=PLAIN, dataset=TOY, **fields):
    values = {
        "data": Data(name="toy", fingerprint=dataset.fingerprint),
        "classes": dataset.info.classes,
        "resolution": dataset.info.resolution,
        "teacher": "t" * 64,
        "collection": collection,
    }
    return StatisticsRecipe(**{**values, **fields})


def _inputs(network, pixels):
    """Every module's input, by name, float64."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda _m, inputs, name=name: seen.__setitem__(name, inputs[0].double()))
        for name, module in network.network.named_modules()
    ]
    with torch.no_grad():
        network(pixels)
    for hook in hooks:
        hook.remove()
    return {name: maps.numpy() for name, maps in seen.items()}


def _tiles(maps, patch):
    """Row-major list of (B, D, patch, patch) tiles, by slicing."""
    rows, columns = (range(0, side, patch) for side in maps.shape[2:])
    return [maps[:, :, row : row + patch, column : column + patch] for row in rows for column in columns]


def test_statistics_equal_a_pass_that_keeps_everything(tmp_path):
    teacher, recipe = toy_teacher(TOY), _recipe()
    notes = []
    result = collect(recipe, teacher, TOY, tmp_path, progress=lambda *told: notes.append(told))
    got = load(tmp_path, recipe)
    assert (result["images"], result["layers"]) == (21, 4)
    assert notes[0] == (5 / 21, "images 5/21") and notes[-1] == (1.0, "images 21/21")
    assert (got.teacher, got.patch) == ("t" * 64, 4)
    assert list(got.whole) == ["0", "3"] and sorted(got.classes) == ["0", "1", "3", "4"]

    order = torch.randperm(21, generator=generator(0, "statistics", "order")).tolist()
    batches = [order[first : first + 5] for first in range(0, 21, 5)]
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 1] and order != sorted(order)
    inputs = [_inputs(teacher, TOY.images("train", batch).float() / 255) for batch in batches]
    labels = np.concatenate([TOY.labels("train")[batch] for batch in batches])

    def averaged(name, figure):
        return sum(len(batch[name]) * figure(batch[name]) for batch in inputs) / 21

    for name in ("0", "3"):
        whole = got.whole[name]
        expected = (
            averaged(name, lambda maps: maps.mean((0, 2, 3))),
            averaged(name, lambda maps: maps.var((0, 2, 3))),
            averaged(name, lambda maps: np.array([tile.mean() for tile in _tiles(maps, 4)])),
            averaged(name, lambda maps: np.array([tile.var() for tile in _tiles(maps, 4)])),
        )
        for figure, wanted in zip(whole, expected, strict=True):
            np.testing.assert_allclose(figure.numpy(), wanted, rtol=2e-5, atol=1e-6)
    for name in ("0", "1", "3", "4"):
        maps = np.concatenate([batch[name] for batch in inputs])
        tiles = _tiles(maps, 4)
        single = [maps.mean((2, 3)), maps.var((2, 3))]
        if name in got.whole:
            single += [np.stack([f(tile, axis=(1, 2, 3)) for tile in tiles], 1) for f in (np.mean, np.var)]
        for figure, values in zip(got.classes[name], single, strict=False):
            wanted = np.stack([values[labels == label].mean(0) for label in range(3)])
            np.testing.assert_allclose(figure.numpy(), wanted, rtol=2e-5, atol=1e-6)
        assert (got.classes[name].patch_mean is None) == (name in ("1", "4"))


def test_layers_are_convolutions_and_batchnorms_with_running_statistics_in_order():
    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3), nn.BatchNorm2d(3),
        nn.ReLU(), nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip
    assert list(matched_layers(network)) == ["0", "3", "5.0", "5.1"]


def test_maps_are_resized_to_the_next_multiple_by_plain_linear_interpolation():
    maps = torch.rand((2, 3, 4, 7), generator=generator(1, "maps"))
    assert resized_to_tiles(maps[..., :6], 2).shape == (2, 3, 4, 6)
    assert torch.equal(resized_to_tiles(maps[..., :6], 2), maps[..., :6])
    got = resized_to_tiles(maps, 3)
    assert got.shape == (2, 3, 6, 9)

    def line(values, size):
        """Pixel centres, positions clamped to the outermost ones; no antialias."""
        there = np.arange(len(values)) + 0.5
        return np.interp((np.arange(size) + 0.5) * len(values) / size, there, values)

    wanted = np.apply_along_axis(line, 2, np.apply_along_axis(line, 3, maps.double().numpy(), 9), 6)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-6)


def test_tiles_are_row_major():
    maps = torch.arange(24.0).view(4, 6)
    wanted = [maps[row : row + 2, column : column + 2].mean() for row in (0, 2) for column in (0, 2, 4)]
    assert tile_means(maps, 2).tolist() == wanted


def test_small_maps_and_an_uneven_patch(tmp_path):
    """Maps of one pixel become one tile; sides of 16 and a patch of 5 give sixteen."""
    teacher = toy_teacher(TOY)
    teacher.network[7] = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Flatten())
    teacher = teacher.eval().requires_grad_(False)
    recipe = _recipe(CollectionSettings(patch=5, crop="none", flip=False, batch_size=7))
    collect(recipe, teacher, TOY, tmp_path)
    got = load(tmp_path, recipe)
    assert got.whole["0"].patch_mean.shape == (16,) and got.whole["7.0"].patch_mean.shape == (1,)
    assert not got.classes["7.0"].var.any()
    # A tile of a constant map: its variance is that between channels (and, in a batch, images).
    between = got.classes["7.0"].mean.var(1, correction=0)
    assert (got.classes["7.0"].patch_var[:, 0] >= between - 1e-6).all()


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_views_are_those_of_the_collection_and_a_function_of_its_seed(tmp_path, crop):
    teacher = toy_teacher(TOY)
    seen = []
    hook = teacher.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    recipe = _recipe(CollectionSettings(patch=4, crop=crop, flip=True, batch_size=21))
    before = torch.get_rng_state()
    files = []
    for place, seed in (("first", 0), ("again", 0), ("other", 1)):
        collect(recipe.model_copy(update={"seed": seed}), teacher, TOY, tmp_path / place)
        files.append((tmp_path / place / STATISTICS).read_bytes())
    hook.remove()
    assert torch.equal(torch.get_rng_state(), before)
    assert files[0] == files[1] != files[2]
    order = torch.randperm(21, generator=generator(0, "statistics", "order"))
    views, images = seen[0], TOY.images("train", order.tolist()).float() / 255
    changed = [not torch.equal(view, image) for view, image in zip(views, images, strict=True)]
    assert sum(changed) > 15
    if crop == "pad":
        wide = nn.functional.pad(images, (2, 2, 2, 2))
        for view, image in zip(views, wide, strict=True):
            both = (image, image.flip(2))
            assert any(
                torch.equal(view, one[:, top : top + 16, left : left + 16])
                for one in both for top in range(5) for left in range(5)
            )  # fmt: skip


def test_what_does_not_fit_together(tmp_path):
    teacher = toy_teacher(TOY)
    for change, error, message in (
        ({"classes": "c" * 64}, ClassOrderError, r"Dataset toy has class list .*, the recipe expects cccccccccccc"),
        (
            {"data": Data(name="toy", fingerprint="f" * 32)},
            DataCorrupt,
            r"Dataset toy has fingerprint .*, the recipe expects ffffffffffff of toy",
        ),
        ({"resolution": 32}, BadValue, r"Dataset toy has 16 pixels, the recipe expects 32"),
        (
            {"data": Data(name="toy", fingerprint=TOY.fingerprint, split="unknown")},
            BadValue,
            r"statistics cannot be computed on split 'unknown'",
        ),
    ):
        with pytest.raises(error, match=message):
            collect(_recipe(**change), teacher, TOY, tmp_path)
    with pytest.raises(BadValue, match="this one is in training mode"):
        collect(_recipe(), teacher.train(), TOY, tmp_path)
    empty = ToyDataset(side=16, per_class=7)
    empty._labels = np.where(empty._labels == 1, 2, empty._labels)
    with pytest.raises(DataMissing, match=r"Class toy1 of toy has no training image"):
        collect(_recipe(), teacher.eval(), empty, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_what_it_should_be(tmp_path):
    recipe = _recipe()
    with pytest.raises(DataMissing, match=r"holds no statistics: manifest\.json is missing"):
        load(tmp_path, recipe)
    collect(recipe, toy_teacher(TOY), TOY, tmp_path)
    with pytest.raises(DataCorrupt, match=r"holds statistics toy of tttttttt .*, expected statistics toy of uuuuuuuu"):
        load(tmp_path, _recipe(teacher="u" * 64))
    with pytest.raises(ClassOrderError, match=r"The statistics in .*: class list .*, the recipe expects cccccccccccc"):
        load(tmp_path, _recipe(classes="c" * 64))

    whole = (tmp_path / STATISTICS).read_bytes()
    (tmp_path / STATISTICS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataCorrupt, match=r"statistics\.safetensors has sha256 \w{12}, its record says \w{12}"):
        load(tmp_path, recipe)
    (tmp_path / STATISTICS).unlink()
    with pytest.raises(DataMissing, match=r"lacks its file statistics\.safetensors"):
        load(tmp_path, recipe)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"images": "many"}))
    with pytest.raises(DataCorrupt, match="is not a statistics manifest: images"):
        load(tmp_path, recipe)
