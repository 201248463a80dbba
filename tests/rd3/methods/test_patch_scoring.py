"""Ranking crops by a fast copy of the teacher chooses what the teacher alone chooses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rd3.methods import METHODS, Context
from rd3.methods._patch_scoring import (
    Crops,
    _cut_singly,
    _cut_together,
    contenders_scored,
    cross_entropy,
    images_per_pass,
    key_patches,
    logits_of,
    margin,
)
from rd3.seeding import generator
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

IMAGES, CROPS = 300, 5


def _chosen(losses, wanted):
    key_loss, key = losses.min(dim=1)
    best = key_loss.argsort(stable=True)[:wanted]
    return list(zip(best.tolist(), key[best].tolist(), strict=True))


def _search(true, ranks, wanted):
    """What is chosen, how many crops were scored, and in how many rounds."""
    losses = F.softplus(-true)
    asked = []

    def score(places):
        asked.append(places)
        return losses.flatten()[places], true.flatten()[places]

    found = contenders_scored(ranks, wanted, score)
    places = torch.cat(asked)
    assert len(places.unique()) == len(places), "a crop was scored twice"
    assert torch.equal(found.flatten()[places], losses.flatten()[places])
    return _chosen(found, wanted), _chosen(losses, wanted), len(places), len(asked)


@pytest.mark.parametrize("wanted", [1, 10, 50, 300])
@pytest.mark.parametrize("noise", [0.0, 1e-5, 0.02])
def test_crops_are_chosen_as_if_all_had_been_scored(wanted, noise):
    for trial in range(20):
        stream = generator(trial, "margins")
        true = 4 * torch.randn(IMAGES, CROPS, generator=stream)
        ranks = true + noise * torch.randn(IMAGES, CROPS, generator=stream)
        found, expected, scored, _rounds = _search(true, ranks, wanted)
        assert found == expected
        assert scored < 60 + 3 * wanted


def test_the_worse_the_copy_the_more_crops_are_scored():
    stream = generator(0, "margins")
    true, noise = (torch.randn(IMAGES, CROPS, generator=stream) for _ in range(2))
    counts = []
    for share in (0.0, 0.01, 0.1, 10.0):
        found, expected, scored, rounds = _search(true, true + share * noise, 10)
        assert found == expected
        counts.append(scored)
    assert counts == sorted(counts) and counts[0] == 32 and counts[-1] == IMAGES * CROPS
    assert rounds > 1


def test_crops_that_losses_cannot_tell_apart_are_taken_in_order():
    # In float32 softplus(-17) is the distance of 1 from the next number below: losses are equal, or zero.
    true = torch.full((IMAGES, CROPS), 18.0)
    ranks = true + torch.rand(IMAGES, CROPS, generator=generator(0, "margins"))
    losses = torch.zeros(IMAGES, CROPS)
    found = contenders_scored(ranks, 10, lambda places: (losses.flatten()[places], true.flatten()[places]))
    assert _chosen(found, 10) == [(image, 0) for image in range(10)]


def test_a_copy_that_answers_nonsense_leaves_all_to_the_teacher():
    true = torch.randn(IMAGES, CROPS, generator=generator(0, "margins"))
    for nonsense in (torch.nan, torch.inf, -torch.inf):
        ranks = true.clone()
        ranks[7, 3] = nonsense
        found, expected, _scored, _rounds = _search(true, ranks, 10)
        assert found == expected
    found, expected, scored, _rounds = _search(true, torch.full_like(true, torch.nan), 10)
    assert (found, scored) == (expected, true.numel())


def test_a_teacher_that_answers_nonsense_ends():
    nothing = torch.full((IMAGES, CROPS), torch.nan)
    losses = contenders_scored(nothing, 10, lambda places: (torch.full(places.shape, torch.nan),) * 2)
    assert losses.isnan().all()


def test_the_margin_is_the_inverse_of_the_cross_entropy():
    logits = 3 * torch.randn(50, 7, generator=generator(0, "logits"))
    expected = F.cross_entropy(logits, torch.full((50,), 2), reduction="none")
    torch.testing.assert_close(cross_entropy(logits, 2), expected)
    torch.testing.assert_close(F.softplus(-margin(logits, 2)), expected)


class Counting(ToyDataset):
    """Notes which images were read."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.read = []

    def original(self, split, index):
        self.read.append(index)
        return super().original(split, index)


def _context(dataset, teacher, **settings):
    recipe = trial_recipe("rded", dataset, 2, **settings)
    resolved = METHODS.get("rded").Settings.model_validate(recipe.settings)
    return Context(recipe, resolved, dataset.info, dataset, (teacher,), torch.device("cpu"))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_patches_are_those_that_the_teacher_alone_chooses(bf16, factor, monkeypatch):
    monkeypatch.setattr("rd3.device.bf16_in_hardware", lambda device: bf16)
    dataset = Counting(per_class=120, factor=factor)
    ctx, wanted = _context(dataset, toy_teacher(dataset), mipc=120, num_crop=5), 10
    size, images = 32 // factor, ctx.class_indices(1).tolist()
    got = key_patches(1, images, wanted, generator(0, "crops"), ctx, size=size)
    assert sorted(dataset.read[:120]) == images, "images are not decoded once each to be ranked"
    assert len(dataset.read) < 120 + 100

    # All crops, scored by the teacher.
    from rd3.augment import crop_boxes

    stream = generator(0, "crops")
    boxes = torch.stack([crop_boxes(5, 32, 32, 0.08, stream, ratio=(1.0, 1.0)) for _ in images])
    crops = Crops(1, images, boxes, size)
    cut = torch.stack([crops.pixels(image, torch.arange(5), ctx) for image in range(120)])
    losses = cross_entropy(logits_of(cut.flatten(0, 1), ctx), 1).view(120, 5)
    expected = torch.stack([cut[image, crop] for image, crop in _chosen(losses, wanted)])
    assert torch.equal(got, expected)


def test_passes_do_not_grow_with_the_number_of_crops():
    class Noting(torch.nn.Module):
        """A teacher that notes the batches it takes."""

        def __init__(self, teacher):
            super().__init__()
            self.teacher, self.mean, self.batches = teacher, teacher.mean, batches

        def forward(self, pixels):
            self.batches.append(len(pixels))
            return self.teacher(pixels)

    largest = []
    for num_crop in (30, 300):
        batches = []
        dataset = ToyDataset(per_class=20)
        ctx = _context(dataset, Noting(toy_teacher(dataset)), mipc=20, num_crop=num_crop)
        ctx.shared["fast teacher"] = ctx.teachers[0]
        key_patches(0, ctx.class_indices(0).tolist(), 2, generator(0, "crops"), ctx, size=32)
        largest.append(max(batches))
    assert largest == [images_per_pass(ctx)] * 2


@pytest.mark.parametrize("size", [16, 32])
def test_crops_to_rank_are_those_that_are_scored(size):
    from rd3.augment import crop_and_resize, crop_boxes

    dataset, stream = ToyDataset(per_class=3), generator(0, "crops")
    originals = dataset.originals("train", range(5))
    boxes = [crop_boxes(7, 32, 32, 0.08, stream, ratio=(1.0, 1.0)) for _ in originals]
    expected = torch.cat(
        [
            crop_and_resize(image.float().expand(7, -1, -1, -1), own, size)
            for image, own in zip(originals, boxes, strict=True)
        ]
    )
    for cut in (_cut_singly, _cut_together):
        # Weights are rounded once more or less, of values up to 255.
        torch.testing.assert_close(torch.stack(list(cut(originals, boxes, size))), expected, atol=1e-3, rtol=0)


def test_a_pass_has_about_as_many_pixels_at_every_side():
    at_once = {}
    for side in (32, 64, 224):
        dataset = ToyDataset(side=side, per_class=2)
        at_once[side] = images_per_pass(_context(dataset, toy_teacher(dataset)))
    assert at_once == {32: 256, 64: 64, 224: 16}
