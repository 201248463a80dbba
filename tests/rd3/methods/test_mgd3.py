"""MGD3's step against its formula, and a whole loop against a plain one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rd3.datasets import dataset_info
from rd3.diffusion.derivations.prototypes import FILE, TENSOR, Prototypes
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.guide import Step
from rd3.diffusion.sampler import guided, sample
from rd3.errors import BadValue
from rd3.methods import METHODS, resolve_settings
from rd3.methods.mgd3 import ModeGuide
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.planning.sets import plan_set
from rd3.recipe import Data, DerivedRecipe, SetRecipe
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset

SIZES = {"width": 16, "depth": 2, "heads": 2, "patch": 8}
DATA = ToyDataset()


@pytest.fixture
def model() -> DiT:
    """A model whose weights are not the zeros of its initialisation."""
    own, stream = DiT.create(SIZES, DATA.info, generator(0, "tiny")), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in own.transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=stream), alpha=0.05)
    return own.frozen()


def step(number: int, count: int = 50) -> Step:
    stream = torch.Generator().manual_seed(number)
    parts = [torch.randn(2, 3, 4, 4, generator=stream) for _ in range(4)]
    return Step(number, count, 980 - 20 * number, *parts[:3], parts[3].abs(), [(0, 0), (1, 0)])


@pytest.mark.parametrize("number", [0, 10, 23])
def test_a_noisy_step_moves_towards_the_modes(number: int):
    modes, own = torch.randn(2, 3, 4, 4), step(number)
    found = ModeGuide(modes, 0.1, 25).follow(own)
    assert isinstance(own.noise_std, torch.Tensor)
    for place in ((0, 0, 0, 0), (1, 2, 3, 1)):
        pull = float(modes[place] - own.clean[place]) * float(own.noise_std[place])
        assert float(found[place]) == pytest.approx(float(own.following[place]) + 0.1 * pull, rel=1e-5)


def test_24_of_50_steps_are_guided_at_stop_25():
    guide = ModeGuide(torch.zeros(2, 3, 4, 4), 0.1, 25)
    moved = [number for number in range(50) if guide.follow(own := step(number)) is not own.following]
    assert moved == list(range(24))  # indices 49 down to 26


def test_a_whole_loop_equals_a_plain_one(model: DiT):
    """DDPM with a learned range by hand: posterior mean, interpolated log variance, and the pull before ``stop``."""
    modes, steps, stop, scale = torch.randn(2, *model.shape), 10, 4, 0.3
    conditions = model.conditions(torch.tensor([0, 2]))
    streams = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    found = sample(
        model, model.scheduler("ddpm"), conditions, streams, [(0, 0), (2, 0)], steps=steps, guidance=4.0,
        guide=ModeGuide(modes, scale, stop),
    )  # fmt: skip

    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    times = [round(i * 999 / (steps - 1)) for i in range(steps)]
    streams = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    x = torch.stack([torch.randn(model.shape, generator=stream) for stream in streams])
    for index in reversed(range(steps)):
        t = times[index]
        output = guided(model, x, torch.tensor(t), conditions, 4.0)
        noise, share = output[:, :3], (output[:, 3:] + 1) / 2
        a, before = float(kept[t]), float(kept[times[index - 1]]) if index else 1.0
        beta = 1 - a / before
        clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        mean = math.sqrt(before) * beta / (1 - a) * clean + math.sqrt(a / before) * (1 - before) / (1 - a) * x
        if index == 0:
            x = mean
            break
        low, high = math.log((1 - before) / (1 - a) * beta), math.log(beta)
        sigma = (0.5 * (share * high + (1 - share) * low)).exp()
        drawn = torch.stack([torch.randn(model.shape, generator=stream) for stream in streams])
        x = mean + sigma * drawn
        if index > stop:
            x = x + scale * (modes - clean) * sigma
    assert torch.allclose(found, x, atol=1e-3, rtol=1e-3)


def test_settings():
    settings = resolve_settings("mgd3", dataset_info("imagenette"), 10)
    assert settings.model_dump() == {
        "backbone": "dit", "clusters": 10, "mode_scale": 0.1, "stop": 25, "steps": 50, "guidance": 4.0,
    }  # fmt: skip
    method = METHODS.get("mgd3")()
    [derive] = method.needs(DATA.info, settings, "").derived
    assert (derive.step, derive.settings.model_dump()["algorithm"]) == ("prototypes", "kmeans")
    assert not method.nests(settings, DATA.info)


@pytest.mark.parametrize(("steps", "stop"), [(26, 25), (10, 25), (1, 0)])
def test_a_stop_before_the_first_step_is_refused(steps, stop):
    with pytest.raises(BadValue, match=f"none of {steps} steps is guided .* mode_scale 0"):
        resolve_settings("mgd3", dataset_info("imagenette"), 10, {"steps": steps, "stop": stop})
    plain = resolve_settings("mgd3", dataset_info("imagenette"), 10, {"steps": steps, "stop": stop, "mode_scale": 0})
    assert plain.mode_scale == 0
    assert resolve_settings("mgd3", dataset_info("imagenette"), 10, {"steps": steps, "stop": steps - 2}).steps == steps


def test_a_set_from_plan_to_images(model: DiT, tmp_path: Path):
    data, digits = Data(name="toy", fingerprint=DATA.fingerprint), dataset_info("digits")
    role = backbone_role(digits, "dit")
    planned = plan_set(
        "mgd3", DATA.info, data, 2, {"steps": 4, "stop": 1, "mode_scale": 3.0}, teacher="",
        teacher_of=lambda name: pytest.fail(name),
        backbone_of=lambda name: backbone_recipe(role, DATA.info, DATA.fingerprint),
    )  # fmt: skip
    *_backbones, derived, recipe = planned.recipes(0)
    assert isinstance(derived, DerivedRecipe) and isinstance(recipe, SetRecipe)
    settings = Prototypes.Settings.model_validate(derived.settings)
    Prototypes().derive(derived, settings, model, DATA, tmp_path, lambda fraction, note: None)
    assert (tmp_path / FILE).is_file() and TENSOR == "prototypes"
    sets = []
    for name, at_once in (("together", 16), ("alone", 1)):
        place = tmp_path / name
        synthesize(recipe, DATA, [], place, backbones=[model], derived=[tmp_path], blocks_at_once=at_once)
        sets.append(SyntheticSet.open(place))
    assert sets[0].images.shape == (6, 3, 32, 32)
    assert (sets[0].images.int() - sets[1].images.int()).abs().max() <= 1
