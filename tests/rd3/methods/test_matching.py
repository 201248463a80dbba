"""The matching loss and the pool against hand-computed cases, slicing and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rd3.errors import DataCorrupt
from rd3.layer_statistics import LayerStatistics
from rd3.methods._matching import MatchingLoss, targets_of_all, targets_of_labels
from rd3.methods._moments import moments_of_batch
from rd3.methods._pool import padded_crop
from rd3.models._matched import Moments
from rd3.seeding import generator


def _moments(*figures):
    return Moments(*(None if figure is None else torch.tensor(figure) for figure in figures))


def _small():
    """A convolution that changes nothing and a BatchNorm2d of running mean 1 and variance 4, for one channel."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval().requires_grad_(False)
    network[0].weight.fill_(1)
    network[0].bias.zero_()
    network[1].running_mean.fill_(1)
    network[1].running_var.fill_(4)
    return network


# One image of zeros and one of twos: mean 1 and variance 1, of the channel and of the one tile.
BATCH = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
STATISTICS = LayerStatistics(
    teacher="t" * 64,
    patch=2,
    whole={"0": _moments([0.0], [1.0], [3.0], [4.0])},
    classes={
        "0": _moments([[0.0], [4.0]], [[1.0], [3.0]], [[1.0], [5.0]], [[0.0], [2.0]]),
        "1": _moments([[1.0], [5.0]], [[2.0], [4.0]]),
    },
)


def _passes(loss, count=1):
    values = []
    for _pass in range(count):
        with loss:
            next_input = BATCH
            for layer in loss.network:
                next_input = layer(next_input)
            values.append(float(loss.value()))
    return values


def _loss(network, targets, **options):
    loss = MatchingLoss(network, targets, **{"patch": 2, "first_multiplier": 10, "ema": 0.0, **options})
    loss.network = network
    return loss


def test_terms_of_a_case_computed_by_hand():
    network = _small()
    loss = _loss(network, [(1.0, targets_of_all(network, STATISTICS))])
    # Convolution: |0 - 1| + |1 - 1| + |3 - 1| + |4 - 1| = 6, ten times; BatchNorm: |1 - 1| + |4 - 1| = 3.
    assert _passes(loss) == pytest.approx([63])


def test_two_targets_are_weighted():
    network = _small()
    labels = torch.tensor([0, 1, 1, 1])
    of_labels = targets_of_labels(network, STATISTICS, labels)
    # A quarter of class 0 and three of class 1.
    wanted = {"0": (3.0, 2.5, 4.0, 1.5), "1": (4.0, 3.5)}
    for name, figures in wanted.items():
        assert tuple(float(value) for value in of_labels[name] if value is not None) == figures
    loss = _loss(network, [(0.25, targets_of_all(network, STATISTICS)), (0.75, of_labels)])
    # Labels: convolution 2 + 1.5 + 3 + 0.5 = 7, BatchNorm 3 + 2.5 = 5.5.
    assert _passes(loss) == pytest.approx([0.25 * 63 + 0.75 * (70 + 5.5)])


def test_the_moving_average_starts_at_zero():
    network = _small()
    loss = _loss(network, [(1.0, targets_of_all(network, STATISTICS))], ema=0.5)
    # Every moment is 1, and 1/2, 3/4 on average: (1/2 + 1/2 + 5/2 + 7/2) = 7, (1/2 + 7/2) = 4; then 6.5 and 3.5.
    assert _passes(loss, 2) == pytest.approx([74, 68.5])
    fresh = _loss(network, [(1.0, targets_of_all(network, STATISTICS))], ema=0.5)
    assert _passes(fresh) == pytest.approx([74])


def _wide():
    stream = generator(3, "wide")
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 1)).double()
    network.eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=stream, dtype=torch.float64) + 0.2)
    return network


def _plain_moments(maps, patch):
    """By slicing; maps (B, D, 4, 4) are resized by hand for patches of 3."""
    figures = [maps.mean((0, 2, 3)), maps.var((0, 2, 3), correction=0)]
    if patch is None:
        return figures
    side = -(-maps.shape[-1] // patch) * patch
    maps = nn.functional.interpolate(maps, (side, side), mode="bilinear") if side != maps.shape[-1] else maps
    firsts = range(0, side, patch)
    tiles = [maps[:, :, row : row + patch, column : column + patch] for row in firsts for column in firsts]
    return [
        *figures,
        torch.stack([tile.mean() for tile in tiles]),
        torch.stack([tile.var(correction=0) for tile in tiles]),
    ]


@pytest.mark.parametrize("patch", [2, 3])
def test_moments_and_their_written_out_gradients(patch):
    maps = torch.randn((3, 2, 4, 4), generator=generator(0, "maps"), dtype=torch.float64, requires_grad=True)
    got, wanted = moments_of_batch(maps, patch), _plain_moments(maps, patch)
    for figure, plain in zip(got, wanted, strict=True):
        torch.testing.assert_close(figure, plain)
    assert moments_of_batch(maps, None)[2:] == (None, None)
    assert torch.autograd.gradcheck(lambda maps: tuple(moments_of_batch(maps, patch)), maps)


@pytest.mark.parametrize("patch", [2, 3])
def test_the_gradient_is_that_of_the_batchs_statistics_at_the_averaged_value(patch):
    """Central differences of A + a(x) - a(x0), with the average A held: the loss itself works in fp32."""
    network = _wide()
    firsts, seconds = (
        torch.randn((3, 2, 4, 4), generator=generator(seed, "batch"), dtype=torch.float64) for seed in (1, 2)
    )
    tiles = (-(-4 // patch)) ** 2
    stream = generator(4, "targets")
    figures = {"0": (2, 2, tiles, tiles), "1": (3, 3), "3": (3, 3, tiles, tiles)}
    target = {name: Moments(*(torch.rand(size, generator=stream) for size in sizes)) for name, sizes in figures.items()}
    loss = MatchingLoss(network, [(1.0, target)], patch=patch, first_multiplier=10, ema=0.8)
    with loss:
        network(firsts)
        loss.value()
    leaf = seconds.clone().requires_grad_(True)
    with loss:
        network(leaf)
        value = loss.value()
        (gradient,) = torch.autograd.grad(value, leaf)

    def moments_at(batch):
        hidden, found = batch, {}
        for number, layer in enumerate(network):
            if str(number) in figures:
                found[str(number)] = _plain_moments(hidden, None if number == 1 else patch)
            hidden = layer(hidden)
        return found

    first, second = moments_at(firsts), moments_at(seconds)

    def plain(batch):
        total = 0.0
        for name, found in moments_at(batch).items():
            for wanted, past, centre, now in zip(
                (part for part in target[name] if part is not None), first[name], second[name], found, strict=True
            ):
                average = 0.8 * (0.2 * past) + 0.2 * centre
                total += (10 if name == "0" else 1) * (wanted.double() - (average + now - centre)).norm()
        return float(total)

    assert value.item() == pytest.approx(plain(seconds), rel=1e-5)
    for place in [(0, 0, 0, 0), (1, 1, 3, 2), (2, 0, 1, 1), (0, 1, 2, 3)]:
        step = torch.zeros_like(seconds)
        step[place] = 1e-5
        slope = (plain(seconds + step) - plain(seconds - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=2e-3, abs=1e-4)


def test_convolutions_are_dropped_by_chance_and_batchnorms_are_not():
    network = _small()
    loss = _loss(
        network, [(1.0, targets_of_all(network, STATISTICS))], ema=0.5, drop_rate=0.4, stream=generator(0, "drop")
    )
    # A dropped convolution does not move its average either: 70, 65, 62.5, ... in order of the passes that see it.
    values = _passes(loss, 400)
    of_batchnorm = [3 + 0.5**t for t in range(400)]
    of_convolution = [value - norm for value, norm in zip(values, of_batchnorm, strict=True)]
    seen = [value for value in of_convolution if value > 1]
    assert 0.33 < 1 - len(seen) / 400 < 0.47
    assert seen[:4] == pytest.approx([70, 65, 62.5, 61.25])
    alone = _loss(nn.Sequential(network[0]), loss.targets, drop_rate=0.999, stream=generator(1, "drop"))
    assert _passes(alone) == [0]


def test_hooks_are_gone_afterwards():
    network = _small()
    loss = _loss(network, [(1.0, targets_of_all(network, STATISTICS))])
    _passes(loss)
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert loss.value() == 0


def test_statistics_of_another_network():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    with pytest.raises(DataCorrupt, match=r"statistics of teacher tttttttttttt have no layer '1', its network has"):
        targets_of_all(network, STATISTICS)
    with pytest.raises(DataCorrupt, match=r"have no layer '2', its network has"):
        targets_of_labels(nn.Sequential(*_small(), nn.BatchNorm2d(1)), STATISTICS, torch.tensor([0]))


def test_a_padded_crop_is_one_window_for_the_whole_batch():
    images = torch.rand((3, 2, 8, 8), generator=generator(0, "images")) + 1
    wide = torch.zeros(3, 2, 10, 10)
    wide[:, :, 1:9, 1:9] = images
    allowed = [wide[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    stream, seen = generator(0, "crops"), set()
    for _draw in range(100):
        crop = padded_crop(images, 1, stream)
        (place,) = [number for number, one in enumerate(allowed) if torch.equal(one, crop)]
        seen.add(place)
    assert len(seen) == 9
