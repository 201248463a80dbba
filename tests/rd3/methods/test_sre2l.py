"""SRe2L's shared steps against hand-computed cases and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rd3.errors import Diverged, Unsupported
from rd3.methods import METHODS
from rd3.methods._moments import _image_means, channel_moments
from rd3.methods._recovery import BatchNormLoss, PixelSpace, RecoverySettings, cosine, optimise, shared_view
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

TOY = ToyDataset(side=16)


def _space():
    return PixelSpace(toy_teacher(TOY))


def test_bn_loss_of_a_case_computed_by_hand():
    """Inputs 0 and 2 in channel 0 (mean 1, variance 1), 3 and 3 in channel 1 (mean 3, variance 0)."""
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    first.running_mean, first.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 4.0])
    second.running_mean, second.running_var = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    network = nn.Sequential(first, nn.Identity(), second).eval()
    batch = torch.tensor([[0.0, 3.0], [2.0, 3.0]]).view(2, 2, 1, 1)
    with BatchNormLoss(network, 10) as loss:
        network(batch)
        # Layer 1: |(4 - 1, 4 - 0)| + |(1 - 1, 0 - 3)| = 5 + 3.  Its output: (-1/2, 1/2) and 3/2 twice (up to eps).
        # Layer 2: mean (0, 3/2), variance (1/4, 0): |(3/4, 1)| + |(0, 3/2)| = 1.25 + 1.5.
        assert loss.value().item() == pytest.approx(10 * 8 + 2.75, abs=1e-4)


def test_bn_loss_equals_var_mean_and_its_gradient_finite_differences():
    network = toy_teacher(TOY).network.double()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    images = torch.randn((3, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def plain(batch):
        total, hidden = 0.0, batch
        for module in network[:6]:
            if module in layers:
                variance, mean = torch.var_mean(hidden, (0, 2, 3), correction=0)
                weight = 10 if module is layers[0] else 1
                distance = (module.running_var - variance).norm() + (module.running_mean - mean).norm()
                total = total + weight * distance
            hidden = module(hidden)
        return total

    # The loss works in fp32: central differences of the plain fp64 form are the reference.
    leaf = images.clone().requires_grad_(True)
    with BatchNormLoss(network, 10) as loss:
        network(leaf)
        value = loss.value()
        (gradient,) = torch.autograd.grad(value, leaf)
    assert value.item() == pytest.approx(plain(images).item(), rel=1e-5)
    for place in [(0, 0, 0, 0), (1, 2, 3, 1), (2, 1, 2, 2), (0, 2, 1, 3)]:
        step = torch.zeros_like(images)
        step[place] = 1e-5
        slope = (plain(images + step) - plain(images - step)).item() / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("batches", [1, 3])
def test_the_written_out_gradient_of_moments_in_double_precision(batches):
    """Against finite differences, and both moments of every batch against torch's own."""
    images = torch.randn((6, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [torch.var_mean(batch, (0, 2, 3), correction=0) for batch in images.chunk(batches)]
    mean, variance = channel_moments(images, batches)
    torch.testing.assert_close(mean, torch.stack([each[1] for each in expected]))
    torch.testing.assert_close(variance, torch.stack([each[0] for each in expected]))
    assert torch.autograd.gradcheck(lambda images: channel_moments(images, batches), images.requires_grad_(True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_of_maps_that_lie_off_centre(layout):
    """A mean of five deviations: squares are 26 times the variance, and so are their 2^-24; sums of 512 add up some."""
    maps = 5 + torch.randn((4, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    mean, variance = channel_moments(maps.contiguous(memory_format=layout), 2)
    expected = torch.var_mean(maps.double().unflatten(0, (2, 2)), (1, 3, 4), correction=0)
    torch.testing.assert_close(variance.double(), expected[0], rtol=26 * 32 * 2**-24, atol=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=32 * 2**-24, atol=0)


def test_the_two_ways_to_sum_squares_agree():
    maps = torch.randn((4, 8, 16, 16), generator=torch.Generator().manual_seed(0))
    here = _image_means(maps)
    elsewhere = _image_means(Elsewhere(maps))
    torch.testing.assert_close(here, elsewhere)


class Elsewhere:
    """Maps that say that they are on another device."""

    device = torch.device("meta")

    def __init__(self, maps):
        self.flatten = maps.flatten


def test_bn_loss_is_small_on_what_the_statistics_are_of():
    """A network whose running statistics were taken from real images is met by them, and not by noise."""
    teacher, real = toy_teacher(TOY), TOY.images("train", range(24)).float() / 255
    teacher.network.train()
    for layer in teacher.network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    # Two passes: the second layer's statistics in eval mode are of the first one's final output.
    teacher(real)
    teacher.network.eval()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    with BatchNormLoss(teacher.network, 10) as loss:
        teacher(real)
        on_real = float(loss.value())
        teacher.network(noise)
        assert float(loss.value()) > 10 * on_real


def test_hooks_are_gone_afterwards_and_a_network_without_batchnorm_is_unsupported():
    network = toy_teacher(TOY).network
    with BatchNormLoss(network, 10):
        pass
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(Unsupported, match="Sequential has no BatchNorm2d layers"):
        BatchNormLoss(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), 10)
    with pytest.raises(Unsupported):
        BatchNormLoss(nn.BatchNorm2d(3, track_running_stats=False), 10)


def test_cosine_in_closed_form():
    assert cosine(0, 1000) == 1
    assert cosine(500, 1000) == pytest.approx(0.5)
    assert cosine(250, 1000) == pytest.approx(0.8535534)
    assert 0 < cosine(999, 1000) < 3e-6


def test_adam_under_the_cosine_equals_adam_written_out():
    """Three steps on a quadratic with the given betas, by the formulas of Kingma and Ba."""
    target = torch.full((1, 3, 2, 2), 0.3)
    start = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    got = optimise(
        start.clone(), lambda x, _t: ((x - target) ** 2).sum() / 2, _space(),
        RecoverySettings(iterations=3, lr=0.1, beta1=0.5, beta2=0.9), where="here", progress=lambda fraction: None,
    )  # fmt: skip
    x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(3):
        grad = x - target
        m, v = 0.5 * m + 0.5 * grad, 0.9 * v + 0.1 * grad**2
        rate = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * t / 3))) / 2
        x = x - rate * (m / (1 - 0.5 ** (t + 1))) / ((v / (1 - 0.9 ** (t + 1))).sqrt() + 1e-8)
    torch.testing.assert_close(got, x)


def test_every_channel_is_clamped_to_the_image_of_0_to_1():
    space = _space()
    images = 100 * torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    inside = images.clone().clamp(-0.5, 0.5)
    space.clamp_(images)
    for channel, (mean, std) in enumerate(zip((0.5, 0.45, 0.4), (0.25, 0.2, 0.3), strict=True)):
        assert float(images[:, channel].min()) == pytest.approx(-mean / std)
        assert float(images[:, channel].max()) == pytest.approx((1 - mean) / std)
    kept = inside.clone()
    space.clamp_(kept)
    assert torch.equal(kept, inside)
    pixels = space.to_255(images)
    assert 0 <= float(pixels.min()) < 1e-3 and 254.99 < float(pixels.max()) <= 255


def test_a_loss_that_is_not_finite_names_iteration_and_last_finite_loss():
    images = torch.zeros(1, 3, 2, 2)
    with pytest.raises(Diverged, match=r"here: the loss was nan at iteration 101 of 200 \(last finite loss 0 at iter"):
        optimise(
            images, lambda x, t: x.sum() * (float("nan") if t >= 60 else 0.0), _space(),
            RecoverySettings(iterations=200, lr=0.1), where="here", progress=lambda fraction: None,
        )  # fmt: skip


def test_pixels_that_are_not_finite_after_the_last_step_are_said_to_be_so():
    with pytest.raises(
        Diverged, match=r"here: pixels were not finite at iteration 2 of 2 \(last finite loss 0 at iter"
    ):
        optimise(
            torch.zeros(1, 3, 2, 2), lambda x, t: (0 * x).sqrt().sum() if t else x.sum() * 0, _space(),
            RecoverySettings(iterations=2, lr=0.1), where="here", progress=lambda fraction: None,
        )  # fmt: skip


@pytest.mark.parametrize(("two_sided", "rolls"), [(False, range(3)), (True, range(-2, 3))])
def test_views_are_shared_by_the_batch_and_roll_in_range(two_sided, rolls):
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    stream = torch.Generator().manual_seed(0)
    allowed = {(h, w): torch.roll(images, (h, w), (2, 3)) for h in rolls for w in rolls}
    seen = set()
    for _draw in range(400):
        out = shared_view(images, stream, min_area=None, flip=False, jitter=2, two_sided=two_sided)
        seen |= {place for place, expected in allowed.items() if torch.equal(out, expected)}
        assert torch.equal(out[0], out[1]) and any(torch.equal(out, expected) for expected in allowed.values())
    assert seen == set(allowed)


def test_views_crop_and_flip_the_whole_batch_alike():
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).expand(3, 3, 16, 16)
    stream = torch.Generator().manual_seed(1)
    outs = [shared_view(images, stream, min_area=0.08, flip=True, jitter=4) for _draw in range(5)]
    assert all(out.shape == (3, 3, 16, 16) and torch.equal(out[0], out[2]) for out in outs)
    assert not torch.equal(outs[0], outs[1])


def test_recovering_lowers_both_losses_and_nests(tmp_path):
    teacher = toy_teacher(TOY)
    for ipc in (1, 2):
        recipe = trial_recipe("sre2l", TOY, ipc, batch_classes=2, iterations=20)
        synthesize(recipe, TOY, (teacher,), tmp_path / str(ipc))
    small, large = (SyntheticSet.open(tmp_path / str(ipc)) for ipc in (1, 2))
    assert torch.equal(small.images, large.prefix(1)[0])
    assert large.manifest.phases.keys() == {"recover"}

    noise = torch.randn(large.images.shape, generator=torch.Generator().manual_seed(0)) * teacher.std + teacher.mean
    with torch.inference_mode(), BatchNormLoss(teacher.network, 10) as statistics:
        figures = []
        for images in (large.images / 255, noise.clamp(0, 1)):
            cross_entropy = -teacher(images).log_softmax(1)[range(6), large.labels].mean()
            figures.append((cross_entropy.item(), statistics.value().item()))
    (made, made_distance), (chance, chance_distance) = figures
    assert made < 0.8 * chance and made_distance < chance_distance


def test_a_batch_is_one_image_of_each_of_a_group_of_classes():
    recipe = trial_recipe("sre2l", TOY, 2, batch_classes=2)
    blocks = METHODS.get("sre2l")().blocks(recipe, TOY.info)
    assert [block.members for block in blocks] == [((0, 0), (1, 0)), ((2, 0),), ((0, 1), (1, 1)), ((2, 1),)]


def test_a_teacher_that_gives_nan_diverges(tmp_path):
    teacher = toy_teacher(TOY)
    teacher.network[0].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"SRe2L, block 0: the loss was nan at iteration 1 of 3 \(no finite loss before"):
        synthesize(trial_recipe("sre2l", TOY, 1), TOY, (teacher,), tmp_path)
