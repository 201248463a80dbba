"""DWA against the released algorithm in plain loops: perturbation, recovery, and what adds up from batch to batch."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from rd3.datasets import dataset_info
from rd3.errors import Diverged
from rd3.methods import METHODS, Cost, resolve_settings
from rd3.methods import _bn_matching as base
from rd3.methods._base import published, reductions
from rd3.methods._recovery import BatchNormLoss
from rd3.methods.dwa import DWA
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe, trial_recipes, trial_set

TOY = ToyDataset(side=16)
RHO = 0.6
STILL = {"jitter": 0, "crop_scale_min": None, "flip": False, "rho": RHO}
"""No views: every iteration sees the images as they are."""


def _make(tmp_path, folder, ipc=1, teacher=None, **settings):
    recipes = trial_recipes("dwa", TOY, ipc, **{**STILL, **settings})
    trial_set(recipes, TOY, (teacher or toy_teacher(TOY),), tmp_path, tmp_path / folder)
    return SyntheticSet.open(tmp_path / folder)


def _started_from(tmp_path, ipc=1):
    """The random set that the trial's recipes start from, as the trial made it: pixels in [0, 1]."""
    key = trial_recipes("dwa", TOY, ipc)[-1].init
    return SyntheticSet.open(tmp_path / "parents" / key).images.float() / 255


def _settings(**settings):
    return resolve_settings("dwa", TOY.info, 1, {**DWA.quick, **STILL, **settings})


def _ascended(network, images, labels, steps, rho):
    """Parameters and losses after plain gradient ascent; every step starts from a function of the parameters alone."""
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}
    losses = []
    for _step in range(steps):
        leaves = {name: value.clone().requires_grad_(True) for name, value in parameters.items()}
        loss = F.cross_entropy(functional_call(network, leaves, (images,)), labels)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        length = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients.values()))
        parameters = {name: parameters[name] + rho / steps * gradients[name] / length for name in parameters}
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(F.cross_entropy(functional_call(network, parameters, (images,)), labels).item())
    return parameters, losses


@pytest.mark.parametrize("steps", [1, 4])
def test_the_perturbation_is_plain_ascent_over_all_parameters(steps):
    teacher = toy_teacher(TOY).network
    labels = torch.tensor([0, 1, 2])
    images = torch.randn((3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    expected, losses = _ascended(copy.deepcopy(teacher), images, labels, steps, RHO)
    before = copy.deepcopy(teacher.state_dict())

    copied = DWA().network(SimpleNamespace(device=torch.device("cpu"), teachers=[SimpleNamespace(network=teacher)]))
    DWA().before(copied, lambda seen: F.cross_entropy(copied(seen), labels), images, _settings(steps=steps))
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
        assert not torch.equal(parameter, before[name])
        assert not parameter.requires_grad and parameter.grad is None
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1

    moved = [parameter - before[name] for name, parameter in copied.named_parameters()]
    length = math.sqrt(sum(float((each.double() ** 2).sum()) for each in moved))
    assert length <= RHO * (1 + 1e-5)
    assert length == pytest.approx(RHO, rel=1e-5 if steps == 1 else 0.1)
    # The statistics that the images are to meet are the teacher's, and the teacher is left as it was.
    assert all(torch.equal(buffer, before[name]) for name, buffer in copied.named_buffers())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_variances_are_weighed_in_a_case_computed_by_hand():
    """The case of test_sre2l: |variances| 5 and 1.25, |means| 3 and 1.5."""
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    first.running_mean, first.running_var = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 4.0])
    network = nn.Sequential(first, nn.Identity(), second).eval()
    batch = torch.tensor([[0.0, 3.0], [2.0, 3.0]]).view(2, 2, 1, 1)
    settings = _settings(variance_weight=11.0)
    for loss, weight in ((DWA().statistics(network, settings, 1), 11), (BatchNormLoss(network, 10), 1)):
        with loss:
            network(batch)
            assert loss.value().item() == pytest.approx(10 * (5 * weight + 3) + 1.25 * weight + 1.5, rel=1e-5)


def _released(start, teacher, groups, settings, *, together):
    """(N, 3, H, W) uint8: the released loop without views, in plain torch.

    ``together``: batches share one teacher whose gradients are cleared by nothing but a step, and the first update of
    the images has all gradients since they were read; otherwise each batch has a teacher and gradients of its own.
    """
    mean, std = teacher.mean, teacher.std
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    bn_layers = [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]
    inputs_of = {}
    for number, layer in enumerate(bn_layers):
        layer.register_forward_pre_hook(lambda _layer, inputs, number=number: inputs_of.update({number: inputs[0]}))
    made = []
    for group in groups:
        if not together:
            network.load_state_dict(teacher.network.state_dict())
            network.zero_grad()
        labels = torch.tensor(group)
        images = ((start[group] - mean) / std).requires_grad_(True)
        adam = torch.optim.Adam([images], lr=settings.lr, betas=(0.5, 0.9))
        for iteration in range(settings.iterations):
            adam.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * iteration / settings.iterations)) / 2
            adam.zero_grad()
            for _step in range(settings.steps if iteration == 0 else 0):
                F.cross_entropy(network(images), labels).backward()
                gradients = [parameter.grad for parameter in network.parameters()]
                norm = torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12
                with torch.no_grad():
                    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                        parameter += gradient * settings.rho / settings.steps / norm
                network.zero_grad()
            if not together:
                adam.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            for number, layer in enumerate(bn_layers):
                seen = inputs_of[number].transpose(0, 1).flatten(1)
                distance = settings.variance_weight * (layer.running_var - seen.var(1, correction=0)).norm()
                distance = distance + (layer.running_mean - seen.mean(1)).norm()
                loss = loss + settings.bn_weight * (10 if number == 0 else 1) * distance
            loss.backward()
            adam.step()
            with torch.no_grad():
                images.copy_(((images * std + mean).clamp(0, 1) - mean) / std)
        made.append((images.detach() * std + mean).clamp(0, 1).mul(255).to(torch.uint8))
    return torch.cat(made)


@pytest.mark.parametrize("accumulate", [False, True])
def test_sets_equal_the_released_algorithm_written_out(accumulate, tmp_path):
    """Two batches of one image number; nothing random but the start."""
    settings = {"batch_classes": 2, "iterations": 4, "steps": 3, "lr": 0.1}
    made = _make(tmp_path, "made", accumulate=accumulate, **settings)
    options = _settings(**settings)
    plain = {
        together: _released(_started_from(tmp_path), toy_teacher(TOY), [[0, 1], [2]], options, together=together)
        for together in (False, True)
    }

    def apart(one, two):
        return (one.int() - two.int()).abs()

    # A last digit may fall on the other side of a whole number; Adam turns the sign of a gradient near 0 into a step.
    right, wrong = apart(made.images, plain[accumulate]), apart(made.images, plain[not accumulate])
    assert (right > 1).float().mean() < 0.002
    assert (wrong[:2] > 1).float().mean() > 0.02  # the gradients that the first update has besides
    assert (wrong[2] > 1).float().mean() > 0.02  # and the teacher that the second batch has


def _entered(monkeypatch):
    """What the network was like when each batch began: (weights of the first layer, its gradient)."""
    noted, plain = [], DWA.before

    def before(self, network, *rest):
        weight = network[0].weight
        noted.append((weight.detach().clone(), None if weight.grad is None else weight.grad.clone()))
        return plain(self, network, *rest)

    monkeypatch.setattr(DWA, "before", before)
    return noted


def test_every_batch_begins_with_the_teacher_unless_they_accumulate(tmp_path, monkeypatch):
    noted, teacher = _entered(monkeypatch), toy_teacher(TOY)
    weight = teacher.network[0].weight.clone()
    _make(tmp_path, "clean", ipc=2, teacher=teacher, batch_classes=2)
    assert len(noted) == 4 and all(torch.equal(found, weight) and gradient is None for found, gradient in noted)

    noted.clear()
    made = _make(tmp_path, "piled", ipc=2, teacher=teacher, batch_classes=2, accumulate=True)
    fresh = [(torch.equal(found, weight), gradient is None) for found, gradient in noted]
    assert fresh == [(True, True), (False, False)] * 2  # reloaded for each image number
    assert float(noted[1][1].norm()) > 0
    assert torch.equal(teacher.network[0].weight, weight)
    assert len(made.manifest.files) == 2


def test_blocks_with_and_without_accumulating():
    def members(**settings):
        recipe = trial_recipe("dwa", TOY, 2, batch_classes=2, **settings)
        return [block.members for block in METHODS.get("dwa")().blocks(recipe, TOY.info)]

    assert members() == [((0, 0), (1, 0)), ((2, 0),), ((0, 1), (1, 1)), ((2, 1),)]
    assert members(accumulate=True) == [((0, 0), (1, 0), (2, 0)), ((0, 1), (1, 1), (2, 1))]


def test_the_perturbation_looks_at_the_view_of_the_first_iteration(tmp_path, monkeypatch):
    seen, plain = [], DWA.network

    def network(self, ctx):
        copied = plain(self, ctx)
        copied.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
        return copied

    monkeypatch.setattr(DWA, "network", network)
    _make(tmp_path, "made", steps=3, iterations=2, jitter=4, crop_scale_min=0.08, flip=True)
    assert len(seen) == 3 + 2
    for view in seen[:3]:
        torch.testing.assert_close(view, seen[3])
    assert not torch.allclose(seen[3], seen[4], atol=0.1)


def test_with_no_steps_and_equal_weights_it_is_sre2l(tmp_path):
    """The ablation changes nothing but the perturbation: the random draws are the same."""
    common = {"iterations": 4, "jitter": 2, "batch_classes": 2, "crop_scale_min": 0.08, "flip": True, "init": "noise"}
    teacher, content = toy_teacher(TOY), {}
    for name, settings in {
        "sre2l": {},
        "dwa": {"steps": 0, "variance_weight": 1.0},
        "weighed": {"steps": 0, "variance_weight": 3.0},
        "perturbed": {"steps": 2, "variance_weight": 1.0, "rho": RHO},
    }.items():
        recipe = trial_recipe("sre2l" if name == "sre2l" else "dwa", TOY, 1, **common, **settings)
        content[name] = synthesize(recipe, TOY, (teacher,), tmp_path / name).content
    assert content["sre2l"] == content["dwa"]
    assert len(set(content.values())) == 3


@pytest.mark.parametrize("name", ["dwa", "sre2l", "cda"])
def test_images_start_from_the_init_set_normalised(name, tmp_path, monkeypatch):
    started, plain = [], base.optimise

    def optimise(images, *rest, **options):
        started.append(images.clone())
        return plain(images, *rest, **options)

    monkeypatch.setattr(base, "optimise", optimise)
    recipes = trial_recipes(name, TOY, 2, init="random", batch_classes=2, lr=1e-7)
    trial_set(recipes, TOY, (toy_teacher(TOY),), tmp_path, tmp_path / "made")
    real = SyntheticSet.open(tmp_path / "parents" / recipes[-1].init).images
    pixels = real.double() / 255
    for channel, (mean, std) in enumerate(zip((0.5, 0.45, 0.4), (0.25, 0.2, 0.3), strict=True)):
        normalised = (pixels[:, channel] - mean) / std
        torch.testing.assert_close(torch.cat(started)[:, channel].double(), normalised, atol=1e-5, rtol=0)
    # Steps of almost nothing end where they started, up to the truncation.
    made = SyntheticSet.open(tmp_path / "made").images
    assert (made.int() - real.int()).abs().max() <= 1


def test_bf16_perturbs_parameters_that_stay_fp32(tmp_path):
    recipes = trial_recipes("dwa", TOY, 1, **STILL)
    recipes[-1] = recipes[-1].model_copy(update={"precision": "bf16"})
    trial_set(recipes, TOY, (toy_teacher(TOY),), tmp_path, tmp_path / "bf16")
    fp32 = _make(tmp_path, "fp32")
    bf16 = SyntheticSet.open(tmp_path / "bf16")
    assert 0 < (bf16.images.float() - fp32.images.float()).abs().mean() < 20


def test_a_teacher_that_gives_nan_diverges(tmp_path):
    teacher = toy_teacher(TOY)
    teacher.network[0].weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"DWA, block 0: the loss was nan at iteration 1 of 3 \(no finite loss before"):
        _make(tmp_path, "nan", teacher=teacher)


def test_cost_counts_the_passes_of_the_perturbation():
    def passes(**settings):
        recipe = trial_recipe("dwa", TOY, 2, iterations=100, **settings)
        return METHODS.get("dwa")().cost(recipe, TOY.info, lambda key: Cost(1.0)).flops

    images = 2 * 3
    assert passes(steps=0) == images * 200
    assert passes(steps=12) == images * (200 + 36)
    assert passes(steps=12, accumulate=True) == images * (300 + 36)


def test_published_settings_of_dwa():
    names = ("iterations", "lr", "bn_weight", "variance_weight", "steps", "batch_classes", "jitter", "crop_scale_min")

    def fields(dataset):
        settings = resolve_settings("dwa", dataset_info(dataset), 1)
        assert (settings.rho, settings.init, settings.two_sided, settings.accumulate) == (0.015, "random", False, False)
        assert settings.flip is (settings.crop_scale_min is not None)
        return tuple(getattr(settings, name) for name in names)

    assert fields("imagenet1k") == (2000, 0.25, 0.01, 2, 15, 100, 32, 0.08)
    assert fields("imagenette") == fields("imagewoof") == (2000, 0.25, 0.01, 2, 15, 10, 32, 0.08)
    assert fields("tinyimagenet") == (2000, 0.1, 0.01, 11, 12, 200, 4, 0.08)
    assert fields("cifar100") == (1000, 0.25, 0.01, 11, 12, 100, 4, None)
    assert fields("cifar10") == (1000, 0.25, 0.01, 11, 12, 10, 4, None)
    nearest = {name: published("dwa", dataset_info(name)).nearest for name in ("cifar10", "cifar100", "imagenette")}
    assert nearest == {"cifar10": False, "cifar100": False, "imagenette": True}
    digits = dataset_info("digits")
    assert reductions("dwa", digits, resolve_settings("dwa", digits, 1)) == {"iterations": (100, 1000)}
    assert reductions("dwa", digits, resolve_settings("dwa", digits, 1, {"iterations": 1000, "steps": 0})) == {}
