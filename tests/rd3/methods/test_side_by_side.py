"""Blocks made as one batch are those made alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rd3.errors import Diverged
from rd3.methods import METHODS, Context
from rd3.methods._recovery import BatchNormLoss
from rd3.models import build_network
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe

TOY = ToyDataset(classes=4)
EPSILON = torch.finfo(torch.float32).eps
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def _context(name, dataset=TOY, teacher=None, ipc=3, **settings):
    recipe = trial_recipe(name, dataset, ipc, **settings)
    method = METHODS.get(name)()
    resolved = method.Settings.model_validate(recipe.settings)
    ctx = Context(recipe, resolved, dataset.info, dataset, (teacher or toy_teacher(dataset),), CPU)
    return method, ctx, method.blocks(recipe, dataset.info)


def test_statistics_are_of_each_batch_alone():
    network = toy_teacher(TOY).network
    images = torch.randn((12, 3, 16, 16), generator=generator(0, "images"))

    def loss_and_gradient(images, batches):
        images = images.clone().requires_grad_(True)
        with BatchNormLoss(network, 10, 11.0, batches=batches) as loss:
            network(images)
            loss.value().backward()
            return loss.value().detach(), images.grad

    together, gradient = loss_and_gradient(images, 3)
    alone, gradients = zip(*(loss_and_gradient(batch, 1) for batch in images.chunk(3)), strict=True)
    torch.testing.assert_close(together, sum(alone))
    torch.testing.assert_close(gradient, torch.cat(gradients))


@pytest.mark.parametrize("network", ["toy", "resnet18_w16"])
@pytest.mark.parametrize("name", ["sre2l", "cda"])
def test_gradients_of_blocks_together_are_their_own(name, network, monkeypatch):
    """Every iteration, from where the blocks are.

    Sums are taken in another order at most.  A sum of n terms then moves by about sqrt(n) halves of epsilon of its
    size; the longest here are the moments of a layer, over 4 images of 32 x 32.  Each of L layers adds such an error
    on the way forth and on the way back, to values that others carry on at about their size: 2 L sqrt(n) epsilon / 2.
    """
    teacher = toy_teacher(TOY)
    if network != "toy":
        teacher = build_network(network, 4, 32, TOY.info.normalisation, generator(0, "teacher"))
        teacher = teacher.eval().requires_grad_(False)
    found = []

    def noting(images, loss_of, _space, settings, **_rest):
        gradients = []
        for iteration in range(settings.iterations):
            images = images.detach().requires_grad_(True)
            loss = loss_of(images, iteration)
            (gradient,) = torch.autograd.grad(loss, images)
            gradients.append(gradient)
            images = images - 0.5 * gradient / gradient.abs().max()
        found.append(torch.stack(gradients))
        return images.detach()

    monkeypatch.setattr("rd3.methods._bn_matching.optimise", noting)
    method, ctx, blocks = _context(name, teacher=teacher, iterations=1, crop_scale_min=0.3, flip=True, jitter=4)
    assert len(blocks) == 3
    for block in blocks:
        method.make(block, ctx)
    method.make_many(blocks, ctx)
    *alone, together = found
    alone = torch.cat(alone, dim=1)
    assert alone.shape == together.shape == (1, 12, 3, 32, 32)
    layers = sum(isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear) for module in teacher.modules())
    # In the largest gradient of each block: of these the others are sums, too.
    scale = alone.abs().unflatten(1, (3, 4)).amax((0, 2, 3, 4, 5)).repeat_interleave(4).view(1, 12, 1, 1, 1)
    assert float(((together - alone) / scale).abs().max()) < layers * 64 * EPSILON


@pytest.mark.parametrize("name", ["sre2l", "cda"])
def test_sets_of_blocks_made_together_are_those_made_alone(name, tmp_path):
    """Adam's first steps are as long for small gradients as for large ones: where one is rounding alone, it may turn.

    That is where it is below the error of the test above, 1e-4 of the largest: for gradients spread like a normal
    distribution whose largest is 4 deviations, 3e-4 of the pixels in each of three steps.
    """
    recipe = trial_recipe(name, TOY, 5)
    for at_once in (1, 3):
        manifest = synthesize(recipe, TOY, (toy_teacher(TOY),), tmp_path / str(at_once), blocks_at_once=at_once)
        assert len(manifest.files) == 5
    alone, together = (SyntheticSet.open(tmp_path / folder).images.float() for folder in "13")
    assert float(((alone - together).abs() > 1).float().mean()) < 1e-3


def test_blocks_of_several_sizes_come_back_in_order():
    dataset = ToyDataset(classes=5)
    method, ctx, blocks = _context("sre2l", dataset, batch_classes=2)
    told = []
    ctx.progress = told.append
    assert [len(block.members) for block in blocks[:4]] == [2, 2, 1, 2]
    together = method.make_many(blocks[:4], ctx)
    assert told == sorted(told) and told[-1] == 1
    for block, images in zip(blocks, together, strict=False):
        alone = method.make(block, ctx)
        assert images.shape == alone.shape
        assert float(((images.float() - alone.float()).abs() > 1).float().mean()) < 1e-3


def test_how_many_at_once_is_the_devices_matter():
    for name, on_a_gpu in (("sre2l", 10), ("cda", 10), ("dwa", 1), ("random", 1), ("rded", 1), ("edc", 1)):
        method = METHODS.get(name)()
        for side, wanted in ((32, on_a_gpu), (64, on_a_gpu), (224, 1)):
            info = ToyDataset(side=side, per_class=1).info
            assert method.blocks_at_once(info, CUDA) == wanted
            assert method.blocks_at_once(info, CPU) == 1


def test_time_is_shared_out_and_progress_told(tmp_path):
    notes, recipe = [], trial_recipe("sre2l", TOY, 5)
    options = {"blocks_at_once": 2, "progress": lambda *told: notes.append(told)}
    synthesize(recipe, TOY, (toy_teacher(TOY),), tmp_path, only_blocks=[1, 2, 4], **options)
    fractions = [fraction for fraction, _note in notes]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    texts = list(dict.fromkeys(note for _fraction, note in notes))
    assert texts == ["blocks 1 to 2 of 3", "block 3 of 3", "3 of 3 blocks"]
    phases = [_told(tmp_path, index)["phases"]["recover"] for index in (1, 2, 4)]
    assert phases[0] == phases[1] != phases[2]


def _told(folder, index):
    import json

    from safetensors import safe_open

    with safe_open(folder / "blocks" / f"{index:05d}.safetensors", framework="pt") as block:
        return json.loads(block.metadata()["rd3"])


def test_a_kill_loses_the_blocks_that_are_made_together(tmp_path, monkeypatch):
    method, recipe, groups = METHODS.get("sre2l"), trial_recipe("sre2l", TOY, 5), []
    make_many = method.make_many

    def dies_on_the_second(self, blocks, ctx):
        groups.append([block.index for block in blocks])
        if len(groups) == 2:
            raise KeyboardInterrupt
        return make_many(self, blocks, ctx)

    monkeypatch.setattr(method, "make_many", dies_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        synthesize(recipe, TOY, (toy_teacher(TOY),), tmp_path, blocks_at_once=2)
    synthesize(recipe, TOY, (toy_teacher(TOY),), tmp_path, blocks_at_once=2)
    assert groups == [[0, 1], [2, 3], [2, 3], [4]]
    assert SyntheticSet.open(tmp_path).images.shape[0] == 20


def test_a_method_that_says_nothing_makes_one_block_after_the_other():
    method, ctx, blocks = _context("random")
    told = []
    ctx.progress = told.append
    images = method.make_many(blocks[:2], ctx)
    assert all(torch.equal(one, method.make(block, ctx)) for one, block in zip(images, blocks, strict=False))


def test_divergence_names_all_blocks():
    teacher = toy_teacher(TOY)
    teacher.network[1].running_mean.fill_(torch.nan)
    method, ctx, blocks = _context("sre2l", teacher=teacher)
    with pytest.raises(Diverged, match="SRe2L, block 0, 1, 2: the loss was nan"):
        method.make_many(blocks, ctx)
    with pytest.raises(Diverged, match="SRe2L, block 1: the loss was nan"):
        method.make(blocks[1], ctx)
