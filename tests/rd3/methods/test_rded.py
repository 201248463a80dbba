"""RDED against a plain loop over images and crops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from rd3.augment import crop_boxes
from rd3.errors import BadValue, Unsupported
from rd3.methods import METHODS, Context, resolve_settings
from rd3.methods._patch_scoring import cross_entropy, logits_of
from rd3.methods._pixels import to_uint8
from rd3.methods.rded import mosaic
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

SIDE = 32


def score(crops, label, ctx):
    return cross_entropy(logits_of(crops, ctx), label)


def _context(dataset, ipc=2, **settings):
    recipe = trial_recipe("rded", dataset, ipc, **settings)
    resolved = METHODS.get("rded").Settings.model_validate(recipe.settings)
    teachers = (toy_teacher(dataset),)
    return Context(recipe, resolved, dataset.info, dataset, teachers, torch.device("cpu"))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_selection_equals_a_plain_loop(factor):
    dataset = ToyDataset(side=SIDE, per_class=30, factor=factor)
    ctx = _context(dataset, mipc=20, num_crop=4)
    label, wanted = 1, 2 * factor**2
    got = METHODS.get("rded")()._select(label, wanted, ctx)

    # The plain loop: crop, normalise, pad with zeros in normalised space, cross-entropy; best crop, then sort.
    indices, stream, net = ctx.class_indices(label), ctx.rng("select", label), ctx.teachers[0].network
    constants = dataset.info.normalisation
    mean, std = torch.tensor(constants.mean).view(3, 1, 1), torch.tensor(constants.std).view(3, 1, 1)
    size, keys = SIDE // factor, []
    order = torch.randperm(len(indices), generator=stream)[: ctx.settings.mipc]
    for number in order.tolist():
        image, crops = dataset.original("train", int(indices[number])).float() / 255, []
        for top, left, height, width in crop_boxes(4, SIDE, SIDE, 0.08, stream, ratio=(1, 1)).tolist():
            assert height == width
            crop = TF.resized_crop(image, top, left, height, width, [size, size], antialias=True)
            before = (SIDE - size) // 2
            after = SIDE - size - before
            padded = F.pad((crop - mean) / std, (before, after, before, after))
            crops.append((float(F.cross_entropy(net(padded[None]), torch.tensor([label]))), crop))
        keys.append(min(crops, key=lambda pair: pair[0]))
    expected = torch.stack([crop for _loss, crop in sorted(keys, key=lambda pair: pair[0])[:wanted]])
    torch.testing.assert_close(got / 255, expected, atol=1e-5, rtol=0)


def test_scores_are_the_cross_entropy_of_the_padded_crop_also_at_full_size():
    dataset = ToyDataset(side=SIDE)
    ctx, crops = _context(dataset), dataset.images("train", range(5)).float()
    expected = F.cross_entropy(ctx.teachers[0](crops / 255), torch.full((5,), 2), reduction="none")
    torch.testing.assert_close(score(crops, 2, ctx), expected)


def test_patch_k_times_ipc_plus_i_is_tile_k_of_image_i():
    patches = torch.arange(8.0)[:, None, None, None].expand(8, 3, 4, 4)
    images = mosaic(patches, 2, 8)
    assert images.shape == (2, 3, 8, 8)
    assert images[0, 0, ::4, ::4].tolist() == [[0, 2], [4, 6]]
    assert images[1, 2, 3::4, 3::4].tolist() == [[1, 3], [5, 7]]


def test_a_side_that_is_not_divisible_gives_the_first_tiles_a_pixel_more():
    images = mosaic(torch.arange(9.0)[:, None, None, None].expand(9, 3, 3, 3), 3, 11)
    assert images[0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 3
    assert images[0, 0, :, 0].tolist() == [0] * 4 + [3] * 4 + [6] * 3


def test_top_left_patches_score_better_than_bottom_right_ones(tmp_path):
    dataset = ToyDataset(side=SIDE, per_class=40, factor=2)
    recipe = trial_recipe("rded", dataset, 3, mipc=40, num_crop=5)
    synthesize(recipe, dataset, (toy_teacher(dataset),), tmp_path)
    made, ctx, half = SyntheticSet.open(tmp_path), _context(dataset, 3), SIDE // 2
    for image, label in zip(made.images.float(), made.labels.tolist(), strict=True):
        best, worst = image[None, :, :half, :half], image[None, :, half:, half:]
        assert score(best, label, ctx) < score(worst, label, ctx)


def test_sets_nest_at_factor_1(tmp_path):
    dataset = ToyDataset(side=SIDE, per_class=12)
    for ipc in (1, 4):
        synthesize(trial_recipe("rded", dataset, ipc), dataset, (toy_teacher(dataset),), tmp_path / str(ipc))
    small, large = (SyntheticSet.open(tmp_path / str(ipc)) for ipc in (1, 4))
    assert torch.equal(small.images, large.prefix(1)[0])


def test_saving_truncates_and_jpeg_loses_a_little():
    assert to_uint8(torch.full((1, 3, 8, 8), 200.999), "png").unique().tolist() == [200]
    outside = torch.tensor([-3.0, 300.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert to_uint8(outside, "png").unique().tolist() == [0, 255]
    ramp = torch.linspace(0, 255, 32).expand(1, 3, 32, 32)
    lossy, kept = to_uint8(ramp, "jpeg"), to_uint8(ramp, "png")
    assert lossy.shape == kept.shape and not torch.equal(lossy, kept)
    assert (lossy.float() - kept.float()).abs().mean() < 4


def test_settings_follow_from_the_size_of_the_set():
    wide = ToyDataset(side=32, per_class=2000, factor=2).info
    assert resolve_settings("rded", wide, 10).model_dump() == {
        "factor": 2, "mipc": 300, "num_crop": 5, "scale_min": 0.08, "save_format": "png",
    }  # fmt: skip
    assert resolve_settings("rded", wide, 100).mipc == 400
    assert resolve_settings("rded", wide, 100, {"factor": 1}).mipc == 300
    with pytest.raises(BadValue, match="33 tiles do not fit into 32 pixels"):
        resolve_settings("rded", wide, 1, {"factor": 33})


def test_too_few_images_for_the_mosaic(monkeypatch):
    dataset = ToyDataset(side=32, per_class=8, factor=2)
    support = METHODS.get("rded")().supports(dataset.info, 3)
    assert support == (False, "12 patches a class are needed, toy has 8 training images")
    ctx = _context(dataset)
    with pytest.raises(Unsupported, match="Class toy0 has 8 images in split train, rded needs 9"):
        METHODS.get("rded")()._select(0, 9, ctx)
