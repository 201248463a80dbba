from __future__ import annotations

import warnings

import pytest
import torch
from scipy import stats as scipy_stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from rd3 import augment


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=stream(99))


def patch_shuffle(images: torch.Tensor, factor: int, draws: torch.Generator) -> torch.Tensor:
    sides = images.shape[3], images.shape[2]
    return augment.take_lines(images, *(augment.shuffled_strips(len(images), side, factor, draws) for side in sides))


def shuffled_by_strips(image: torch.Tensor, factor: int, columns: list[int], rows: list[int]) -> torch.Tensor:
    """The released routine on one image, with the orders given: cut strips, put them in order, transpose, again."""
    for order in (columns, rows):
        step = image.shape[2] // factor
        strips = [image[:, :, i * step : (i + 1) * step if i < factor - 1 else None] for i in range(factor)]
        image = torch.cat([strips[i] for i in order], dim=2).transpose(1, 2)
    return image


@pytest.mark.parametrize(("factor", "height", "width"), [(2, 8, 8), (3, 7, 8), (4, 9, 11)])
def test_patch_shuffle_equals_strips_per_image(factor, height, width):
    images = pictures(16, height, width)
    draws = stream()
    # The new place of each strip, drawn as the fast routine does; the order is its inverse.
    columns, rows = (torch.rand(16, factor, generator=draws).argsort(1).argsort(1) for _ in range(2))
    found = patch_shuffle(images, factor, stream())
    for image, result, column, row in zip(images, found, columns.tolist(), rows.tolist(), strict=True):
        assert torch.equal(result, shuffled_by_strips(image, factor, column, row))


def test_patch_shuffle_of_two_has_four_outcomes_and_keeps_tiles_aligned():
    tiles = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    found = patch_shuffle(tiles.expand(200, 3, 6, 6), 2, stream())
    kinds, counts = found[:, 0].reshape(200, 36)[:, [0, 3, 18, 21]].unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert counts.min() > 25
    assert torch.equal(patch_shuffle(tiles.expand(2, 3, 6, 6), 1, stream()), tiles.expand(2, 3, 6, 6))


def boxes_by_tries(draws: torch.Generator, batch: int, height: int, width: int, min_area: float) -> list[list[int]]:
    """The law of RandomResizedCrop.get_params, try by try, on the numbers that the fast routine draws."""
    area = torch.empty(batch, 10, dtype=torch.float64).uniform_(min_area, 1, generator=draws) * height * width
    low, high = torch.tensor([3 / 4, 4 / 3], dtype=torch.float64).log().tolist()
    ratio = torch.empty(batch, 10, dtype=torch.float64).uniform_(low, high, generator=draws).exp()
    place = torch.rand(batch, 2, generator=draws, dtype=torch.float64)
    boxes = []
    for b in range(batch):
        for one_area, one_ratio in zip(area[b].tolist(), ratio[b].tolist(), strict=True):
            wide, tall = round((one_area * one_ratio) ** 0.5), round((one_area / one_ratio) ** 0.5)
            if 0 < wide <= width and 0 < tall <= height:
                top, left = int(place[b, 0] * (height - tall + 1)), int(place[b, 1] * (width - wide + 1))
                boxes.append([top, left, tall, wide])
                break
        else:
            boxes.append([0, 0, height, width])
    return boxes


@pytest.mark.parametrize("min_area", [0.08, 0.5, 0.97])
def test_crop_boxes_try_by_try(min_area):
    assert augment.crop_boxes(300, 32, 32, min_area, stream()).tolist() == boxes_by_tries(
        stream(), 300, 32, 32, min_area
    )


def test_crop_boxes_follow_torchvisions_law():
    image = torch.zeros(3, 40, 32)
    with torch.random.fork_rng():
        torch.set_rng_state(stream(5).get_state())
        theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    ours = augment.crop_boxes(3000, 40, 32, 0.5, stream())
    for column in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert scipy_stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(8, 80), (80, 8), (32, 32)])
def test_crop_falls_back_to_the_central_box(height, width):
    # Nothing of nearly full area fits a long image; the square one only admits itself.
    expected = list(RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3]))
    assert augment.crop_boxes(4, height, width, 1.0, stream()).tolist() == [expected] * 4


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [7, 16, 33])
def test_crop_and_resize_equals_torchvision_image_by_image(antialias, size):
    images = pictures(24, 20, 26)
    boxes = augment.crop_boxes(24, 20, 26, 0.05, stream())
    found = augment.crop_and_resize(images, boxes, size, antialias=antialias)
    for image, box, result in zip(images, boxes.tolist(), found, strict=True):
        expected = reference.resized_crop(
            image, *box, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=antialias
        )
        assert (result - expected).abs().max() < 1e-5


def test_whole_box_is_the_image_itself():
    images = pictures(3, 12, 12)
    assert torch.equal(augment.crop_and_resize(images, torch.tensor([[0, 0, 12, 12]] * 3), 12), images)
    assert torch.equal(augment.resized_crop(images, 12, 1.0, stream()), images)


def test_crop_lets_gradients_through():
    images = pictures(2, 6, 6).requires_grad_()
    augment.crop_and_resize(images, torch.tensor([[0, 0, 3, 3], [1, 2, 4, 4]]), 6).sum().backward()
    assert images.grad[0, :, 3:].abs().max() == 0
    assert images.grad[0, :, :3, :3].min() > 0


def test_flip_image_by_image():
    images = pictures(40, 4, 5)
    chosen = (torch.rand(40, generator=stream()) < 0.5).tolist()
    found = augment.horizontal_flip(images, stream())
    for image, result, flipped in zip(images, found, chosen, strict=True):
        assert torch.equal(result, reference.hflip(image) if flipped else image)
    assert 5 < sum(chosen) < 35


def test_cutmix_box_at_the_ends():
    assert augment.cutmix_box(0.0, (16, 16), 32) == (0, 32, 0, 32)
    top, bottom, left, right = augment.cutmix_box(1.0, (16, 16), 32)
    assert top == bottom and left == right
    # Side int(32 * sqrt(0.5)) = 22, half 11, clipped at the corner.
    assert augment.cutmix_box(0.5, (0, 31), 32) == (0, 11, 20, 32)
