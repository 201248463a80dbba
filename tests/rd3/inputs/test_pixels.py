"""Pixel spaces from outside, against values computed from the pixels that were put in."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from rd3.errors import BadValue
from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.pixels import stated_space
from rd3.recipe import Normalisation
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
BYTES = TOY.images("train", range(12))
UNIT = BYTES.numpy().astype(np.float64) / 255
UNIT[0, :, 0, 0], UNIT[0, :, 0, 1] = 0, 1  # both limits are reached in every channel
LABELS = np.arange(12) % 3
SRE2L = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


def taken(images, normalised=None, clip=False):
    """The pixels and the notes."""
    notes = []
    space = stated_space(normalised, clip, TOY.info.normalisation)
    found = check_images_and_labels(images, LABELS, TOY.info, space, say=notes.append)
    return found.images.numpy(), notes


def texts(notes):
    return " | ".join(note.text for note in notes)


def applied(unit, mean, std):
    """Normalised by a plain loop over channels."""
    out = np.empty_like(unit)
    for channel in range(3):
        out[:, channel] = (unit[:, channel] - mean[channel]) / std[channel]
    return out


def refused(images, **options):
    with pytest.raises(BadValue) as caught:
        taken(images, **options)
    return str(caught.value)


def test_the_range_that_was_found_is_said():
    pixels, notes = taken(BYTES)
    assert np.array_equal(pixels, BYTES.numpy())
    assert notes[0].text == f"images: uint8, {BYTES.min()} to {BYTES.max()}"
    assert texts(taken(UNIT / 2)[1]).startswith("images: float64, 0 to 0.5")


@pytest.mark.parametrize("overshoot", [1.0, 1.08])
def test_minus_one_to_one_is_named_and_its_fix_gives_the_pixels(overshoot):
    images = overshoot * (2 * UNIT - 1)
    message = refused(images)
    assert "[-1, 1] is the space of diffusion models" in message and "--normalised half" in message
    for wrong in ("dataset", "imagenet", "cifar10-2023", SRE2L):
        assert "--normalised half" in refused(images, normalised=wrong), wrong
    pixels, notes = taken(images, normalised="half", clip=overshoot > 1)
    np.testing.assert_allclose(pixels, np.clip((overshoot * (2 * UNIT - 1) + 1) / 2, 0, 1), atol=1e-6)
    assert "undone: half" in texts(notes)


def test_pixels_less_a_half_are_named_and_the_fix_gives_the_pixels():
    images = (BYTES.float() * (1.0 / 255) - 0.5).numpy()
    images[0, :, 0, 0], images[0, :, 0, 1] = -0.5, 0.5
    fix = re.search(r"normalised='(.+)'\)", refused(images))[1]
    np.testing.assert_allclose(taken(images, normalised=fix)[0], images + 0.5, atol=1e-6)
    np.testing.assert_allclose(taken(images, normalised=(0.5, 1))[0], images + 0.5, atol=1e-6)


@pytest.mark.parametrize("text", ["cifar10-2023", "0.4914,0.4822,0.4465/0.2023,0.1994,0.2010"])
def test_stated_constants_are_undone(text):
    pixels, notes = taken(applied(UNIT, SRE2L.mean, SRE2L.std), normalised=text)
    np.testing.assert_allclose(pixels, UNIT, atol=1e-6)
    assert "undone: cifar10-2023" in texts(notes) and "pixels " in texts(notes)


def test_limits_that_known_constants_reach_exactly_are_recognised():
    images = applied(UNIT, SRE2L.mean, SRE2L.std)
    assert "give --normalised cifar10-2023" in refused(images)
    assert "give --normalised cifar10-2023" in refused(images, normalised="cifar10")
    faint = applied(0.4 + 0.2 * UNIT, SRE2L.mean, SRE2L.std)
    assert any(note.doubtful and "span only" in note.text for note in taken(faint, normalised="cifar10")[1])


def test_images_of_8_bits_show_which_constants_were_applied():
    stored = 0.2 + 0.6 * UNIT  # neither black nor white
    eight = (255 * stored).round() / 255
    for images, known in (
        (applied(eight, SRE2L.mean, SRE2L.std), True),
        (applied(stored, SRE2L.mean, SRE2L.std), False),
    ):
        assert ("give --normalised cifar10-2023" in refused(images)) == known
        np.testing.assert_allclose(taken(images, normalised=SRE2L)[0], eight if known else stored, atol=1e-6)
    assert "give --normalised cifar10-2023" in refused(applied(eight, SRE2L.mean, SRE2L.std), normalised="cifar10")
    mine = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    text = "0.1,0.2,0.3/0.4,0.5,0.6"
    np.testing.assert_allclose(taken(applied(eight, *mine), normalised=text)[0], eight, atol=1e-6)


def test_pixels_that_were_not_normalised_are_not_undone():
    assert "already lie in [0, 1]" in refused(UNIT, normalised="dataset")
    assert "leave out --normalised" in refused(BYTES, normalised="imagenet")


def test_whitened_images_are_not_led_into_a_flag():
    noise = np.random.default_rng(0).standard_normal((12, 3, 16, 16)).clip(-1.7, 1.7)
    message = refused(noise)
    assert "no known normalisation has these limits" in message
    assert "undo what was applied to the images (whitening" in message
    _pixels, notes = taken(noise, normalised="cifar10")
    assert any(note.doubtful and "ZCA whitening" in note.text for note in notes)
    assert not any("ZCA" in note.text for note in taken(applied(UNIT, SRE2L.mean, SRE2L.std), SRE2L)[1])


@pytest.mark.parametrize(("dtype", "above"), [(torch.float32, 2.4e-7), (torch.float64, 1e-6), (torch.float16, 9e-4)])
def test_what_float_arithmetic_leaves_outside_is_clipped(dtype, above):
    images = torch.from_numpy(UNIT.copy()).to(dtype)
    images[0, 0, 0, 0], images[0, 1, 0, 0] = 1 + above, -3e-8
    pixels, _notes = taken(images)
    assert float(pixels.min()) >= 0 and float(pixels.max()) == 1
    assert "outside" in refused(images * 1.01)


@pytest.mark.parametrize("overshoot", [1.0, 1.2])
def test_black_that_rounding_puts_below_zero_is_not_counted_as_clipped(overshoot):
    """Most pixels of MNIST are black; normalised in fp16 they come back as -3e-5."""
    images = UNIT * (np.random.default_rng(0).random(UNIT.shape) < 0.4)
    images[:, :, 0, :4] = overshoot
    share = float((images > 1).mean())
    stored = torch.from_numpy(applied(images, [0.1307] * 3, [0.3081] * 3)).half()
    pixels, notes = taken(stored, normalised="mnist", clip=True)
    np.testing.assert_allclose(pixels, np.minimum(images, 1), atol=1e-3)
    assert f"clipped to [0, 1]: {100 * share:.2g} % of the values" in texts(notes)


def test_clipping_is_an_option():
    images = UNIT.copy()
    images[:, :, :2] = 1.05
    share = float((images > 1).mean())
    assert refused(images).endswith(
        "clip them with --clip (in Python clip=True) if the method does not clip its images"
    )
    pixels, notes = taken(images, clip=True)
    np.testing.assert_allclose(pixels, np.minimum(images, 1), atol=1e-6)
    assert f"clipped to [0, 1]: {100 * share:.2g} % of the values" in texts(notes)
    normalised = applied(images, SRE2L.mean, SRE2L.std)
    assert "clip them with --clip" in refused(normalised, normalised=SRE2L)
    np.testing.assert_allclose(taken(normalised, SRE2L, clip=True)[0], np.minimum(images, 1), atol=1e-6)


@pytest.mark.parametrize("images", [255 * UNIT, applied(UNIT, SRE2L.mean, SRE2L.std), 2 * UNIT - 1, UNIT - 0.5])
def test_clipping_does_not_hide_another_space(images):
    refused(images, clip=True)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UNIT / 255, "lost their scale, by division by 255 twice. Fix: multiply the images by 255"),
        (UNIT.astype(np.uint8), "by conversion of [0, 1] to integers. Fix: multiply by 255 before"),
        (0 * UNIT, "All images are black"),
        (0 * BYTES, "All images are black"),
        ((UNIT - UNIT.min()) / (UNIT.max() - UNIT.min()) - 1, "range from -1 to 0"),
        (UNIT * np.nan, "not finite"),
        (UNIT - np.inf, "not finite"),
        (UNIT > 0.5, "images are booleans"),
        ((65535 * UNIT).astype(np.uint16), "int64 images range from 0 to 65535"),
        ((127 * UNIT).astype(np.int8) - 64, "int8 images range from -64 to 63"),
    ],
)
def test_what_is_refused(images, message):
    assert message in refused(images)


def test_what_the_fixes_say_works():
    np.testing.assert_allclose(taken(255 * (UNIT / 255))[0], UNIT, atol=1e-6)
    np.testing.assert_allclose(taken(255 * UNIT / 255)[0], UNIT, atol=1e-6)
    np.testing.assert_allclose(taken(255 * UNIT, normalised="bytes")[0], UNIT, atol=1e-6)
    sixteen = (65535 * UNIT).astype(np.uint16)
    fix = re.search(r"\((images // 256)\)\.astype\('uint8'\)", refused(sixteen))
    assert fix and np.array_equal(taken((sixteen // 256).astype("uint8"))[0], sixteen // 256)


@pytest.mark.parametrize(
    ("images", "doubt"), [(UNIT * 0.05, "nearly black"), (0.5 + UNIT * 0.2, "span only 0.5 to 0.7")]
)
def test_what_is_doubted(images, doubt):
    assert any(note.doubtful and doubt in note.text for note in taken(images)[1])


def test_normalised_pixels_scaled_by_their_extremes_are_doubted():
    """Distilled pixels have a few extreme values, which press all others together."""
    images = np.random.default_rng(0).normal(0, 1, UNIT.shape).clip(-2.2, 2.2)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -6, 6
    scaled = (images - images.min()) / (images.max() - images.min())
    central = np.quantile(scaled, [0.01, 0.99])
    [doubt] = [note.text for note in taken(scaled.astype(np.float32))[1] if note.doubtful]
    assert f"98 % of the values lie in {central[0]:.2g} to {central[1]:.2g}: the contrast is low" in doubt
    undone = (0.5 + 0.24 * images).clip(0, 1)
    assert not any(note.doubtful for note in taken(undone.astype(np.float32))[1])


def test_copies_and_plain_images_are_said():
    images = UNIT.copy()
    images[3:6], images[7] = images[2], 0.5
    said = texts(taken(images)[1])
    assert "3 of 12 images are copies of others" in said and "1 of 12 images have one value everywhere" in said
