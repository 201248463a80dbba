"""Augmentations against plain loops and torchvision, and views that do not depend on how many are made at once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from rd3 import augment
from rd3.augmentations import AUGMENTATIONS
from rd3.errors import BadValue
from rd3.evaluation import views as views_module
from rd3.evaluation.views import views
from rd3.protocol import EvalProtocol, Preset, resolve_protocol
from rd3.seeding import generator, scoped

SIDE = 12


def stream(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, side: int = SIDE) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=stream(1))


def step(name: str, **settings):
    kind = AUGMENTATIONS.get(name)
    return kind(kind.Settings(**settings))


def protocol(*steps, factor: int = 1, **fields) -> EvalProtocol:
    rule = {"epochs": 2, "batch_size": 4, "zeta": 1.0, "augmentation": list(steps)}
    preset = Preset(name="test", source="this file", all=rule)
    return resolve_protocol(preset, factor=factor, same_network=True, set_size=100, overrides=fields)


def test_cutmix_pixel_by_pixel():
    images = pictures(5)
    for seed in range(20):
        partner, share, box = step("cutmix").draw(5, SIDE, stream(seed))
        found = step("cutmix").apply(images, partner, share, box)
        top, bottom, left, right = box[0].tolist()
        for k in range(5):
            expected = images[k].clone()
            expected[:, top:bottom, left:right] = images[partner[k], :, top:bottom, left:right]
            assert torch.equal(found[k], expected)
        assert share.tolist() == [pytest.approx(1 - (bottom - top) * (right - left) / SIDE**2)] * 5
    assert torch.equal(images, pictures(5)), "the caller's images are left alone"


def test_cutmix_share_is_uniform():
    areas = [1 - float(step("cutmix").draw(1, 64, stream(seed))[1]) for seed in range(400)]
    # A box of area 1 - lam, lam uniform, clipped at a uniform centre: a square of relative side r keeps (r - r^2/4)
    # of each side on average, so the mean area is the mean of (r - r^2/4)^2 under r^2 uniform.
    assert sum(areas) / len(areas) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)


def test_mixup_blends_and_its_share_is_beta():
    images, mix = pictures(6), step("mixup", alpha=0.8)
    partner, share = mix.draw(6, SIDE, stream())
    found = mix.apply(images, partner, share)
    for k in range(6):
        assert torch.allclose(found[k], float(share[0]) * images[k] + (1 - float(share[0])) * images[partner[k]])
    shares = np.array([float(mix.draw(1, SIDE, stream(seed))[1]) for seed in range(600)])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15)  # of Beta(a, a)


def test_pad_crop_image_by_image():
    images, crop = pictures(9), step("pad_crop", padding=3)
    top, left = crop.draw(9, SIDE, stream())
    found = crop.apply(images, top, left)
    for image, result, row, column in zip(images, found, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(result, reference.crop(reference.pad(image, 3), row, column, SIDE, SIDE))
    assert {int(top.min()), int(left.min())} <= {0, 1} and max(int(top.max()), int(left.max())) <= 6


def test_rand_augment_is_torchvisions_image_by_image():
    images, change = pictures(8), step("rand_augment", operations=2, magnitude=12)
    (seeds,) = change.draw(8, SIDE, stream())
    found = change.apply(images, seeds)
    for image, result, seed in zip(images, found, seeds.tolist(), strict=True):
        with scoped(stream(seed)):
            expected = v2.RandAugment(2, 12)((image * 255).round().byte())
        assert torch.equal(result, expected / 255)
    assert not torch.equal(found, images)
    before = torch.get_rng_state()
    change.apply(images, seeds)
    assert torch.equal(torch.get_rng_state(), before)


def jittered(image: torch.Tensor, order: list[int], shares: list[float]) -> torch.Tensor:
    """IDC's changes of one image, one after the other."""
    for change in order:
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        end = [torch.zeros(1), grey.mean(), grey][change]
        image = image + shares[change] * (end - image)
    return image


def test_colour_jitter_image_by_image():
    images, jitter = pictures(40), step("colour_jitter", brightness=0.4, contrast=0.3, saturation=0.2)
    order, shares = jitter.draw(40, SIDE, stream())
    found = jitter.apply(images, order, shares)
    for image, result, one, share in zip(images, found, order.tolist(), shares.tolist(), strict=True):
        assert torch.allclose(result, jittered(image, one, share), atol=1e-6)
    assert len({tuple(one) for one in order.tolist()}) == 6
    assert (shares.abs().amax(dim=0) <= torch.tensor([0.4, 0.3, 0.2])).all()
    many = jitter.draw(20_000, SIDE, stream())[1]
    assert torch.allclose(many.std(dim=0) * 3**0.5, torch.tensor([0.4, 0.3, 0.2]), rtol=0.03)  # of a uniform variable
    assert "colour_jitter" not in [
        each.name
        for each in protocol({"colour_jitter": {"brightness": 0, "contrast": 0, "saturation": 0}}).augmentation
    ]


def test_lighting_by_its_formula():
    images, lighting = pictures(5), step("lighting", std=0.5)
    (factors,) = lighting.draw(5, SIDE, stream())
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    for image, result, factor in zip(images, lighting.apply(images, factors), factors.numpy(), strict=True):
        colour = vectors @ (factor * values)
        assert np.allclose(result.numpy(), image.numpy() + colour[:, None, None], atol=1e-6)
    many = lighting.draw(20_000, SIDE, stream())[0]
    assert torch.allclose(many.std(dim=0), torch.full((3,), 0.5), rtol=0.03)


def test_rand_augment_clamps_pixels_outside_of_the_unit_range():
    images = pictures(4)
    beyond = images * 1.5 - 0.25
    assert bool((beyond > 1).any()) and bool((beyond < 0).any())
    change, seeds = step("rand_augment", operations=1, magnitude=9), torch.arange(4)
    assert torch.equal(change.apply(beyond, seeds), change.apply(beyond.clamp(0, 1), seeds))


def test_small_settings_reach_timm_as_numbers():
    change = step("timm_rand_augment", magnitude_std=1e-5, probability=1e-5)
    assert change.apply(pictures(1), torch.tensor([1])).shape == pictures(1).shape


def test_more_patches_than_pixels_are_refused():
    with pytest.raises(BadValue, match="images have 8 pixels a side"):
        step("patch_shuffle", grid=9).draw(2, 8, torch.Generator())


def test_timm_rand_augment_is_timms_image_by_image():
    images, change = pictures(12), step("timm_rand_augment")
    (seeds,) = change.draw(12, SIDE, stream())
    states = random.getstate(), np.random.get_state()[1].tolist()
    found = change.apply(images, seeds)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    published = rand_augment_transform("rand-m6-n2-mstd1.0", {"translate_const": 117, "img_mean": (124, 116, 104)})
    for image, result, seed in zip(images, found, seeds.tolist(), strict=True):
        random.seed(seed)
        np.random.seed(seed)
        expected = np.asarray(published(Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())))
        assert np.array_equal((result * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    random.setstate(states[0])
    assert sum(not torch.equal(one, two) for one, two in zip(found, (images * 255).round() / 255, strict=True)) > 5


def test_flip_with_certainty():
    flip = step("flip", probability=1.0)
    assert torch.equal(flip.apply(pictures(3), *flip.draw(3, SIDE, stream())), pictures(3).flip(3))


def test_nothing_on_is_an_exact_no_op():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=stream())
    labels = torch.arange(4)
    for epoch, (_pixels, [batch]) in enumerate(views(images, labels, protocol(), seed=0), 1):
        order = batch.targets.labels
        assert batch.epoch == epoch and torch.equal(batch.images, images[order] / 255)
        assert batch.targets.lam == 1 and torch.equal(batch.targets.labels_mixed, order)


STEPS = (
    "pad_crop", "rand_augment", "timm_rand_augment", "patch_shuffle", "resized_crop", "flip", "colour_jitter",
    "lighting", "cutmix",
)  # fmt: skip


@pytest.mark.parametrize("last", ["cutmix", "mixup"])
def test_views_are_steps_in_their_order_batch_by_batch(last):
    """A rest batch among them, and draws of one stream."""
    images, labels = pictures(10), torch.arange(10)
    one = protocol(*STEPS[:-1], last, factor=2)
    order, draws = generator(3, "order"), generator(3, "augment")
    found = [batch for some in views(images, labels, one, seed=3) for batch in some.batches]
    assert len(found) == 6
    steps = [step(each.name, **each.settings) for each in one.augmentation]
    for batch, rows in zip(
        found, [rows for _ in range(2) for rows in torch.randperm(10, generator=order).split(4)], strict=True
    ):
        pixels = images[rows]
        for each in steps:
            drawn = each.draw(len(rows), SIDE, draws)
            pixels = each.apply(pixels, *drawn)
        partner, share = drawn[:2]
        assert torch.equal(batch.images, pixels) and batch.targets.lam == float(share[0])
        assert torch.equal(batch.targets.labels, rows) and torch.equal(batch.targets.labels_mixed, rows[partner])


@pytest.mark.parametrize("last", ["cutmix", "mixup"])
def test_views_are_the_same_however_many_are_made_at_once(last):
    images, labels = pictures(11), torch.arange(11)
    one = protocol(*STEPS[:-1], last, factor=2, epochs=3)
    alone, *others = (
        [batch for some in views(images, labels, one, 0, ahead) for batch in some.batches] for ahead in (1, 2, 5, 100)
    )
    assert [len(batch.images) for batch in alone] == [4, 4, 3] * 3
    for batches in others:
        for one_batch, other in zip(alone, batches, strict=True):
            assert torch.equal(one_batch.images, other.images) and one_batch.targets.lam == other.targets.lam
            assert torch.equal(one_batch.targets.labels_mixed, other.targets.labels_mixed)


def test_the_order_of_the_paper():
    """Shuffle, crop, flip and CutMix, by the functions that the methods use as well."""
    images, draws = pictures(6, 16), generator(0, "augment")
    rows = torch.randperm(6, generator=generator(0, "order"))
    expected = augment.take_lines(images[rows], *(augment.shuffled_strips(6, 16, 2, draws) for _axis in range(2)))
    expected = augment.horizontal_flip(augment.resized_crop(expected, 16, 0.5, draws), draws)
    cut = step("cutmix")
    expected = cut.apply(expected, *cut.draw(6, 16, draws))
    one = protocol("patch_shuffle", "resized_crop", "flip", "cutmix", factor=2, batch_size=6)
    [found] = next(views(images, torch.arange(6), one, 0)).batches
    assert torch.equal(found.images, expected)
    assert found.images.min() >= 0 and found.images.max() <= 1 + 1e-6


@pytest.mark.parametrize("reuse", ["batches", "epochs"])
@pytest.mark.parametrize("most", [1, 5, 12])
def test_reused_views_do_not_depend_on_the_number_of_kept_states(monkeypatch, reuse, most):
    images, labels = pictures(26), torch.arange(26) % 10
    steps = ({"resized_crop": {"min_area": 0.1}}, "flip", "cutmix")
    stored = {"soft_labels": "stored", "label_epochs": 3, "label_reuse": reuse}
    chosen = protocol(*steps, batch_size=5, epochs=7, **stored)

    def made() -> list[torch.Tensor]:
        return [batch.images for chunk in views(images, labels, chosen, seed=4) for batch in chunk.batches]

    whole = made()  # a state for each of 18 batches, of which the one with a single image is left out
    monkeypatch.setattr(views_module, "_MOST_STATES", most)
    few = made()
    assert len(few) == len(whole) == 7 * 5
    assert all(torch.equal(one, other) for one, other in zip(few, whole, strict=True))
