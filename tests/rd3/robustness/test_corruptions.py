"""Corruptions: deterministic by image, of the strength that the source states, and equal to independent formulas."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from rd3.errors import BadValue, UnknownName
from rd3.robustness import corruptions
from rd3.robustness.corruptions import KNOWN, LEFT_OUT, SEVERITIES, STANDARD, corrupted
from rd3.seeding import generator

FIFTEEN = 15


def pictures(count: int, side: int = 32) -> torch.Tensor:
    """(N, 3, side, side) uint8 of smooth random pixels."""
    coarse = torch.rand(count, 3, 8, 8, generator=generator(0, "pictures"))
    fine = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return (255 * fine).to(torch.uint8)


def grey(count: int, level: int = 128) -> torch.Tensor:
    return torch.full((count, 3, 32, 32), level, dtype=torch.uint8)


def change(images: torch.Tensor, name: str, severity: int) -> np.ndarray:
    """(N, 3, H, W) differences from the images, of pixels in [0, 1]."""
    after = corrupted(images, name, severity, range(len(images)))
    return (after.numpy().astype(float) - images.numpy()) / 255


@pytest.mark.parametrize("name", KNOWN)
def test_an_image_does_not_depend_on_its_batch_and_severity_0_leaves_it(name: str):
    images, places = pictures(5), [3, 7, 8, 20, 400]
    whole = corrupted(images, name, 3, places)
    alone = [corrupted(images[i : i + 1], name, 3, places[i : i + 1]) for i in range(5)]
    assert torch.equal(whole, torch.cat(alone)) and whole.dtype == torch.uint8
    assert torch.equal(whole, torch.cat([corrupted(images[:2], name, 3, places[:2]), whole[2:]]))
    assert torch.equal(corrupted(images, name, 0, places), images)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("side", [32, 64, 224])
def test_a_higher_severity_changes_more(name: str, side: int):
    images = pictures(2, side)
    moved = [np.abs(change(images, name, severity)).mean() for severity in SEVERITIES]
    assert moved[0] < moved[-1]
    if name != "pixelate":  # which changes least where its size divides that of the image
        assert all(low < high * 1.05 for low, high in itertools.pairwise(moved))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_noise_depends_on_place_severity_and_seed(name: str):
    images = grey(1)
    draws = [(0, 3, 0), (1, 3, 0), (0, 4, 0), (0, 3, 1)]
    found = [corrupted(images, name, severity, [place], seed) for place, severity, seed in draws]
    assert not any(torch.equal(found[0], other) for other in found[1:])


def test_noise_has_the_spread_that_the_source_states():
    # Pixels are cut off to whole numbers, which lowers the mean by half a level.
    for severity, c in zip(SEVERITIES, KNOWN["gaussian_noise"].at_32, strict=True):
        moved = change(grey(40), "gaussian_noise", severity)
        assert moved.std() == pytest.approx(c, rel=0.02) and abs(moved.mean() + 0.5 / 255) < 1e-3
    for severity, c in zip(SEVERITIES, KNOWN["shot_noise"].at_32, strict=True):
        rate = 128 / 255
        assert change(grey(40), "shot_noise", severity).std() == pytest.approx((rate / c) ** 0.5, rel=0.02)
    for severity, c in zip(SEVERITIES, KNOWN["speckle_noise"].at_32, strict=True):
        assert change(grey(40), "speckle_noise", severity).std() == pytest.approx(128 / 255 * c, rel=0.02)


def test_impulses_are_black_and_white_alike():
    found = corrupted(grey(40), "impulse_noise", 5, range(40))
    share = [(found == level).float().mean().item() for level in (0, 255)]
    assert share == pytest.approx([0.035, 0.035], rel=0.05) and (found == 128).float().mean() > 0.92


def test_brightness_is_that_of_colorsys():
    images = pictures(1)
    images[0, :, :2] = 0  # black has no hue
    after = corrupted(images, "brightness", 4, [0])
    for y, x in [(0, 0), (1, 5), (10, 3), (31, 31)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[0, :, y, x] / 255.0).tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))
        assert (after[0, :, y, x] / 255.0).tolist() == pytest.approx(expected, abs=1.01 / 255)


def test_contrast_shrinks_every_channel_around_its_mean():
    images = pictures(1)
    after = corrupted(images, "contrast", 5, [0]).double()
    mean = images.double().mean((2, 3), keepdim=True)
    assert (after - (0.15 * (images - mean) + mean)).abs().max() <= 1


def test_enlargements_are_those_of_scipy():
    image = np.random.default_rng(0).uniform(size=(32, 32, 3))
    for factor in (1.0, 1.01, 1.13, 1.25):
        kept = int(np.ceil(32 / factor))
        top = (32 - kept) // 2
        large = zoom(image[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
        trim = (len(large) - 32) // 2
        assert corruptions._zoomed(image, factor) == pytest.approx(large[trim : trim + 32, trim : trim + 32])


def test_defocus_is_a_plain_correlation_with_the_disk():
    kernel = corruptions.disk_kernel(1.5, 0.1)
    assert kernel.shape == (17, 17) and kernel.sum() == pytest.approx(1)
    inside = [(y, x) for y in range(-8, 9) for x in range(-8, 9) if y * y + x * x <= 1.5**2]
    assert len(inside) == 9 and all(kernel[8 + y, 8 + x] == pytest.approx(1 / 9) for y, x in inside)
    image = np.random.default_rng(0).uniform(size=(32, 32, 3))
    found = corruptions._defocus_blur(image, (1.5, 0.1), None)
    padded = np.pad(image, ((8, 8), (8, 8), (0, 0)), mode="reflect")
    for y, x in [(0, 0), (5, 31), (16, 16)]:
        window = padded[y : y + 17, x : x + 17]
        assert found[y, x] == pytest.approx((window * kernel[..., None]).sum(axis=(0, 1)))


def test_blocks_of_equal_pixels_survive_pixelation_at_half_the_size():
    images = pictures(1, 64)
    blocks = torch.nn.functional.interpolate(images[:, :, ::2, ::2].float(), scale_factor=2).to(torch.uint8)
    assert torch.equal(corrupted(blocks, "pixelate", 5, [0]), blocks)
    assert not torch.equal(corrupted(images, "pixelate", 5, [0]), images)


def test_all_of_the_benchmark_are_computed_or_left_out_with_a_reason():
    assert len(STANDARD) + len(LEFT_OUT) == FIFTEEN and not set(KNOWN) & set(LEFT_OUT)
    assert all(len(one.at_32) == len(one.at_64) == len(one.larger) == 5 for one in KNOWN.values())
    with pytest.raises(BadValue, match="fog is not computed: it needs a fractal generator"):
        corrupted(grey(1), "fog", 1, [0])
    with pytest.raises(UnknownName, match="There is no corruption 'contrasts'"):
        corrupted(grey(1), "contrasts", 1, [0])
    with pytest.raises(BadValue, match="Severity is 6, expected 0 to 5"):
        corrupted(grey(1), "contrast", 6, [0])
