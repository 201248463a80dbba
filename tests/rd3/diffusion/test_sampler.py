"""The sampler against diffusers' own pipeline and schedulers, and against plain loops."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from rd3.diffusion.families.dit import DiT
from rd3.diffusion.guide import Guide, Step
from rd3.diffusion.sampler import Conditions, clean, guided, noise_std, sample
from rd3.errors import BadValue


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images(dit: DiT, seeds: tuple[int, ...], scheduler: str | None = None, **options) -> torch.Tensor:
    labels = torch.tensor([seed % 10 for seed in seeds])
    members = [(int(label), 0) for label in labels]
    settings = {"steps": 6, "guidance": 4.0} | options
    return sample(dit, dit.scheduler(scheduler), dit.conditions(labels), streams(*seeds), members, **settings)


def spaced(count: int) -> list[int]:
    """The times of DiT's ``space_timesteps``: from 0 to 999, evenly, rounded one after the other."""
    stride, at, found = 999 / (count - 1), 0.0, []
    for _ in range(count):
        found.append(round(at))
        at += stride
    return found[::-1]


def test_the_times_of_ddpm_are_those_of_dit(dit: DiT):
    scheduler = dit.scheduler()
    for steps in (50, 250):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == spaced(steps)


def test_without_guidance_it_is_the_loop_of_the_scheduler(dit: DiT):
    scheduler, stream = dit.scheduler(), torch.Generator().manual_seed(3)
    scheduler.set_timesteps(6)
    latents = torch.randn(1, 3, 32, 32, generator=stream)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = dit.transformer(latents, timestep=t[None], class_labels=torch.tensor([3])).sample
            latents = scheduler.step(output, t, latents, generator=stream).prev_sample
    assert torch.allclose(images(dit, (3,), guidance=1.0), latents, atol=1e-6)


def test_guidance_is_one_batch_of_both_predictions(dit: DiT):
    calls = []
    transformer = dit.transformer

    def denoise(latents, t, given):
        calls.append((latents, t, given))
        return transformer(latents, timestep=t, class_labels=given).sample

    dit.denoise = denoise  # type: ignore[method-assign]
    x, t = torch.randn(2, 3, 32, 32), torch.tensor(500)
    found = guided(dit, x, t, dit.conditions(torch.tensor([1, 7])), 4.0)
    [(latents, times, given)] = calls
    assert given.tolist() == [1, 7, 10, 10] and times.tolist() == [500] * 4 and torch.equal(latents[:2], latents[2:])
    with_class, without = transformer(latents, timestep=times, class_labels=given).sample.chunk(2)
    noise = without[:, :3] + 4 * (with_class[:, :3] - without[:, :3])
    assert torch.allclose(found, torch.cat([noise, with_class[:, 3:]], dim=1), atol=1e-6)


def test_the_fourth_channel_of_latents_is_not_guided(dit: DiT):
    assert dit.guided_channels == 3
    stub = copy.copy(dit)
    stub.denoise = lambda x, t, given: given.view(-1, 1, 1, 1).float().expand(-1, 8, 2, 2)  # type: ignore[method-assign]
    output = guided(
        stub, torch.zeros(1, 4, 2, 2), torch.tensor(9), Conditions(torch.tensor([2]), torch.tensor([10])), 4
    )
    assert output[0, :, 0, 0].tolist() == [10 + 4 * (2 - 10)] * 3 + [2] * 5


@pytest.mark.parametrize("scheduler", [None, "ddim", "pndm"])
def test_an_image_is_the_same_in_any_batch_up_to_rounding(dit: DiT, scheduler: str | None):
    together = images(dit, (3, 14, 25), scheduler)
    alone = torch.cat([images(dit, (seed,), scheduler) for seed in (3, 14, 25)])
    assert torch.allclose(together, alone, atol=1e-4 * float(together.abs().max()))
    assert torch.equal(images(dit, (3, 14, 25), scheduler), together), "bit for bit in the same batch"
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_ddim_is_its_closed_form(dit: DiT):
    scheduler = DDIMScheduler(**dit.scheduler("ddim").config)
    scheduler.set_timesteps(5)
    latents = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    kept = scheduler.alphas_cumprod
    times = scheduler.timesteps.tolist()
    with torch.no_grad():
        for t, following in zip(times, [*times[1:], None], strict=True):
            noise = dit.transformer(latents, timestep=torch.tensor([t]), class_labels=torch.tensor([8])).sample[:, :3]
            x0 = (latents - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()
            after = kept[following] if following is not None else torch.tensor(1.0)
            latents = after.sqrt() * x0 + (1 - after).sqrt() * noise
    assert torch.allclose(images(dit, (8,), "ddim", steps=5, guidance=1.0), latents, rtol=1e-4, atol=1e-4)


def test_image_to_image_runs_the_last_steps_from_noised_latents(dit: DiT):
    seen: list[Step] = []

    class Watch(Guide):
        def follow(self, step: Step) -> torch.Tensor:
            seen.append(step)
            return step.following

    start = torch.full((1, 3, 32, 32), 0.5)
    images(dit, (4,), "ddim", steps=50, strength=0.7, start=start, guidance=1.0, guide=Watch())
    whole = dit.scheduler("ddim")
    whole.set_timesteps(50)
    assert [step.t for step in seen] == whole.timesteps[15:].tolist() and seen[0].count == 35
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(4))
    kept = whole.alphas_cumprod[seen[0].t]
    assert torch.allclose(seen[0].latents[0], kept.sqrt() * start[0] + (1 - kept).sqrt() * noise, atol=1e-6)
    assert all(step.noise_std == 0 for step in seen)


def test_a_guide_sees_the_prediction_and_the_noise_of_each_step(dit: DiT):
    """The step of DDPM with known noise: mean + std * noise; what is added at the end is the guide's."""
    steps: list[Step] = []

    class Pull(Guide):
        def scale(self, number: int, count: int, scale: float) -> float:
            return 1.0 if number >= count // 2 else scale

        def follow(self, step: Step) -> torch.Tensor:
            steps.append(step)
            return step.following + 0.25

    ended = images(dit, (5, 16), steps=4, guide=Pull())
    assert [step.number for step in steps] == [0, 1, 2, 3] and steps[0].members == [(5, 0), (6, 0)]
    for before, after in itertools.pairwise(steps):
        assert torch.equal(before.following + 0.25, after.latents)
    assert torch.equal(ended, steps[-1].following + 0.25)
    with torch.no_grad():
        last = dit.transformer(
            steps[3].latents, timestep=torch.tensor([0, 0]), class_labels=torch.tensor([5, 6])
        ).sample
    kept = DDPMScheduler(**dit.scheduler().config).alphas_cumprod[0]
    x0 = (steps[3].latents - (1 - kept).sqrt() * last[:, :3]) / kept.sqrt()
    assert torch.allclose(steps[3].clean, x0, atol=1e-6) and steps[3].noise_std == 0.0


@pytest.mark.parametrize("t", [999, 500, 20])
def test_the_noise_has_the_std_that_is_said(dit: DiT, t: int):
    scheduler = dit.scheduler()
    scheduler.set_timesteps(50)
    output, x = torch.randn(1, 6, 32, 32).clamp(-1, 1), torch.randn(1, 3, 32, 32)
    at = scheduler.timesteps[(scheduler.timesteps - t).abs().argmin()]
    one, other = (
        scheduler.step(output, at, x, generator=torch.Generator().manual_seed(seed)).prev_sample for seed in (1, 2)
    )
    drawn = [torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert torch.allclose(one - other, noise_std(scheduler, output, at) * (drawn[0] - drawn[1]), atol=1e-5)


def test_predictions_of_velocity(dit: DiT):
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    x0, noise, t = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.tensor(321)
    kept = scheduler.alphas_cumprod[t]
    xt, velocity = kept.sqrt() * x0 + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * x0
    assert torch.allclose(clean(scheduler, velocity, t, xt), x0, atol=1e-5)


def test_guidance_without_an_unconditional_model_is_refused(dit: DiT):
    with pytest.raises(BadValue, match="Guidance 4 needs a model that was trained without classes as well"):
        guided(dit, torch.zeros(1, 3, 32, 32), torch.tensor(3), Conditions(torch.tensor([1]), None), 4)


def test_a_strength_that_runs_no_step_is_refused(dit: DiT):
    start = torch.zeros(1, 3, 32, 32)
    with pytest.raises(BadValue, match=r"Strength 0\.1 runs none of 6 steps"):
        images(dit, (3,), "ddim", start=start, strength=0.1)
    assert images(dit, (3,), "ddim", start=start, strength=0.17).shape == start.shape
