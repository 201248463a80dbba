"""Text-to-image models against diffusers' own pipeline, with prompts, folders and training that resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from rd3.datasets import Dataset, dataset_info
from rd3.diffusion.autoencoder import make_autoencoder
from rd3.diffusion.backbone import content_digest, open_backbone
from rd3.diffusion.cost import SIZED, autoencoder_tally, sizes_of
from rd3.diffusion.families.text_to_image import TextToImage
from rd3.diffusion.foreign import import_backbone
from rd3.diffusion.prompts import NEGATIVE
from rd3.diffusion.sampler import sample
from rd3.diffusion.training import train
from rd3.errors import BadValue, DataMissing
from rd3.planning.forecast import FORECASTS
from rd3.recipe import BackboneRecipe, BackboneTraining, Data
from rd3.seeding import generator
from rd3.testing import ToyDataset

SIZES = {"autoencoder": [8, 8, 8], "unet": [8, 16], "heads": 2, "text_width": 16, "text_depth": 1, "length": 32}
DIGITS = dataset_info("digits")
PROMPTS = ["three", "five", "one nine"]


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.create(SIZES, DIGITS, generator(0, "tiny")).frozen()


@pytest.fixture(scope="module")
def folder(model: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model.save(place)
    return place


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def start(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def times_of(network: torch.nn.Module) -> list[int]:
    """The times of all calls from now on."""
    times: list[int] = []
    network.register_forward_pre_hook(lambda _module, args: times.append(int(torch.as_tensor(args[1]).flatten()[0])))
    return times


@pytest.mark.parametrize(("name", "calls", "first"), [(None, 36, 701), ("ddim", 35, 681)])
def test_image_to_image_equals_the_pipeline_of_diffusers(folder: Path, name: str | None, calls: int, first: int):
    ours = TextToImage.load(folder, DIGITS).frozen()
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    if name == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    their_times, our_times = times_of(pipeline.unet), times_of(ours.unet)
    theirs = pipeline(
        PROMPTS, image=start(3), strength=0.7, num_inference_steps=50, guidance_scale=8.0,
        negative_prompt=[NEGATIVE] * 3, generator=streams(1, 2, 3), output_type="latent",
    ).images  # fmt: skip
    latents = sample(
        ours, ours.scheduler(name), ours.conditions_of(PROMPTS, NEGATIVE), streams(1, 2, 3), [(0, k) for k in range(3)],
        steps=50, guidance=8.0, start=start(3), strength=0.7,
    )  # fmt: skip
    assert our_times == their_times and (len(our_times), our_times[0]) == (calls, first)
    assert torch.allclose(latents, theirs, atol=1e-5, rtol=1e-5)


def test_the_embedded_prompts_are_those_of_the_pipeline(folder: Path):
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    given, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE] * 3)
    ours = TextToImage.load(folder, DIGITS).frozen().conditions_of(PROMPTS, NEGATIVE)
    assert ours.null is not None
    assert torch.allclose(ours.given, given, atol=1e-6) and torch.allclose(ours.null, null, atol=1e-6)


def test_three_images_together_equal_one_at_a_time(model: TextToImage):
    def latents(which: list[int]) -> torch.Tensor:
        given = model.conditions_of([PROMPTS[n] for n in which], NEGATIVE)
        return sample(
            model, model.scheduler(), given, streams(*which), [(0, n) for n in which],
            steps=10, guidance=8.0, start=start(3)[which], strength=0.7,
        )  # fmt: skip

    alone = torch.cat([latents([n]) for n in range(3)])
    assert torch.allclose(latents([0, 1, 2]), alone, atol=1e-5)


def test_labels_are_conditioned_on_their_class_names_and_the_empty_prompt(model: TextToImage):
    found = model.conditions(torch.tensor([3, 3, 8]))
    assert found.null is not None
    expected = model.embedded(["three", "three", "eight", ""])
    assert torch.allclose(found.given, expected[:3], atol=1e-6)
    assert torch.allclose(found.null, expected[3].expand(3, -1, -1), atol=1e-6)
    assert not torch.allclose(found.given[0], found.given[2], atol=1e-2)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a nice queue", r"does not know 'queue' in the prompt 'a nice queue'\. Fix: use words"),
        ("größe", "does not know 'größe'"),
        ("seven " * 7, "has 35 tokens, the text-to-image model reads 30"),
    ],
)
def test_prompts_that_the_tokenizer_would_change_are_refused(model: TextToImage, prompt: str, message: str):
    with pytest.raises(BadValue, match=message):
        model.conditions_of(["three", prompt])
    with pytest.raises(BadValue, match=message):
        model.conditions_of(["three"], prompt)


def test_the_tokenizer_knows_all_class_names_and_the_negative_prompt_letter_by_letter(model: TextToImage):
    for text in (*DIGITS.class_names, NEGATIVE, "Three"):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        assert model.tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")
        assert len(ids) == len(text.replace(" ", ""))


def test_a_class_name_longer_than_the_prompts_is_refused():
    with pytest.raises(BadValue, match="'cartoon, anime, painting' has 22 tokens, the text-to-image model reads 6"):
        TextToImage.create({**SIZES, "length": 8}, DIGITS, generator(0, "tiny"))


def test_a_saved_model_reloads_bit_for_bit(model: TextToImage, folder: Path, tmp_path: Path):
    again = TextToImage.load(folder, DIGITS).frozen()
    again.save(tmp_path)
    third = TextToImage.load(tmp_path, DIGITS).frozen()
    assert content_digest(model) == content_digest(again) == content_digest(third)
    assert again.scheduler().config == third.scheduler().config
    given = [one.conditions_of(PROMPTS, NEGATIVE).given for one in (again, third)]
    assert torch.equal(*given)
    t = torch.tensor([5, 500, 999])
    assert torch.equal(again.denoise(start(3), t, given[0]), third.denoise(start(3), t, given[1]))
    assert torch.equal(again.codec.decode(start(3)), third.codec.decode(start(3)))


def test_old_folders_load(copied: Path, model: TextToImage):
    weights = copied / "text_encoder" / "model.safetensors"
    new = load_file(weights)
    save_file({f"text_model.{name.removeprefix('text_model.')}": value for name, value in new.items()}, weights)
    index = json.loads((copied / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (copied / "model_index.json").write_text(json.dumps(index))
    assert content_digest(TextToImage.load(copied, DIGITS)) == content_digest(model)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(copied: Path, name: str, tmp_path: Path):
    shutil.rmtree(copied / name)
    with pytest.raises(DataMissing, match=f"lacks {name} of a text-to-image model"):
        import_backbone(copied, dataset=ToyDataset(), family="text-to-image", out=tmp_path / "out")


def test_a_vae_of_three_channels_is_refused(copied: Path):
    AutoencoderKL(latent_channels=3, block_out_channels=(8,), norm_num_groups=8).save_pretrained(copied / "vae")
    with pytest.raises(BadValue, match=r"The VAE has 3 latent channels, a text-to-image model has 4\. Fix: use"):
        TextToImage.load(copied, DIGITS)


def test_schedulers(model: TextToImage):
    assert [type(model.scheduler(name)).__name__ for name in (None, "pndm", "ddim", "ddpm")] == [
        "PNDMScheduler", "PNDMScheduler", "DDIMScheduler", "DDPMScheduler",
    ]  # fmt: skip
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    for name in ("pndm", "ddim", "ddpm"):
        scheduler = model.scheduler(name)
        assert torch.allclose(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4)
        assert not scheduler.config.get("clip_sample", False)
    with pytest.raises(BadValue, match="Unknown scheduler 'euler'"):
        model.scheduler("euler")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unet": [8]}, "size unet: Tuple should have at least 2 items"),
        ({"unet": [8, 12]}, "size unet: 12 is not a multiple of 8"),
        ({"text_width": 15}, "size text_width: 15 is not a multiple of 2"),
        ({"autoencoder": [8] * 5, "unet": [8] * 3}, "32 pixels cannot be halved 6 times"),
        ({"depth": 3}, "size depth: Extra inputs"),
    ],
)
def test_wrong_sizes(wrong: dict[str, object], message: str):
    with pytest.raises(BadValue, match=message):
        TextToImage.create({**SIZES, **wrong}, DIGITS, generator(0, "tiny"))


@pytest.mark.parametrize(
    "config", [SIZES, {**SIZES, "autoencoder": [16, 24], "unet": [16, 24, 32], "layers": 2, "length": 77}]
)
def test_the_planned_cost_is_that_of_torchs_counter(config: dict[str, object]):
    model = TextToImage.create(config, DIGITS, generator(0, "tiny")).frozen()
    given = model.conditions(torch.tensor([1])).given
    with FlopCounterMode(display=False) as counted:
        model.denoise(torch.zeros(1, *model.shape), torch.tensor([5]), given)
    sizes = SIZED["text-to-image"](config, 32)
    assert sizes.forward.flops == pytest.approx(counted.get_total_flops(), rel=0.2)
    assert sizes.values == pytest.approx(model.size, rel=0.2)
    assert sizes.latent == torch.Size(model.shape).numel()


def recipe_of(dataset: Dataset, epochs: int = 2) -> BackboneRecipe:
    return BackboneRecipe(
        data=Data(name=dataset.info.name, fingerprint=dataset.fingerprint),
        classes=dataset.info.classes,
        resolution=32,
        family="text-to-image",
        config=SIZES,
        autoencoder=BackboneTraining(epochs=epochs, batch_size=8, lr=1e-2, ema=0.5),
        training=BackboneTraining(epochs=epochs, batch_size=8, lr=1e-2, ema=0.5, dropout=0.3),
        precision="fp32",
        seed=3,
    )


class Interrupted(Exception):
    """The end of an attempt."""


@pytest.mark.parametrize(("widths", "layers"), [((8, 32, 64), 1), ((32, 64), 2)])
def test_the_cost_of_an_autoencoder_is_that_of_the_real_one(widths: tuple[int, ...], layers: int):
    """As torch counts; the two 1 x 1 convolutions around the latents are left out."""
    vae = make_autoencoder(widths, layers, 32)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        vae.decode(vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean)
    tally = autoencoder_tally(widths, layers, 32)
    assert 2 * tally.macs == pytest.approx(counted.get_total_flops(), rel=0.01)
    assert tally.weights == pytest.approx(sum(value.numel() for value in vae.parameters()), rel=0.03)


def test_planning_counts_the_training_of_both_parts():
    recipe = recipe_of(ToyDataset())
    info = ToyDataset().info
    both = FORECASTS[BackboneRecipe].work(recipe, info, lambda _key: recipe)
    alone = FORECASTS[BackboneRecipe].work(recipe.model_copy(update={"autoencoder": None}), info, lambda _key: recipe)
    epochs = recipe.autoencoder.epochs
    assert (both.cost - alone.cost).flops == 3 * epochs * info.train_count * sizes_of(recipe).autoencoder.flops
    assert both.steps == 2 * alone.steps


def test_planning_knows_its_sizes():
    sizes = sizes_of(recipe_of(ToyDataset()))
    assert sizes.forward.flops > 0 and sizes.latent == 4 * 8 * 8 and sizes.file_bytes > 10_000


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_training_resumes_bit_for_bit(tmp_path: Path, epochs: int):
    dataset = ToyDataset()
    recipe = recipe_of(dataset)
    done: list[float] = []

    def stop(_fraction: float, _note: str) -> None:
        done.append(_fraction)
        if len(done) == epochs:
            raise Interrupted

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = train(recipe, dataset, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, dataset, tmp_path / "parts", progress=stop)
    assert train(recipe, dataset, tmp_path / "parts")["final_loss"] == whole["final_loss"]
    models = [open_backbone(tmp_path / name, recipe, dataset.info) for name in ("whole", "parts")]
    assert content_digest(models[0]) == content_digest(models[1])
    scales = {model.vae.config.scaling_factor for model in models if isinstance(model, TextToImage)}
    assert len(scales) == 1 and scales != {1.0}


def test_latents_of_a_trained_autoencoder_have_standard_deviation_1_and_images_come_back(tmp_path: Path):
    dataset = ToyDataset()
    recipe = recipe_of(dataset, epochs=20)
    train(recipe.model_copy(update={"training": recipe_of(dataset, 1).training}), dataset, tmp_path)
    model = TextToImage.load(tmp_path, dataset.info).frozen()
    images = dataset.images("train", range(24)) / 255
    latents = model.codec.encode(images, streams(*range(24)))
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    decoded = model.codec.decode(latents)
    own, of_others = (float((decoded - one).square().mean()) for one in (images, images.roll(1, 0)))
    assert own < 0.8 * of_others


def test_a_recipe_without_training_of_the_autoencoder_is_refused(tmp_path: Path):
    dataset = ToyDataset()
    recipe = recipe_of(dataset).model_copy(update={"autoencoder": None})
    with pytest.raises(BadValue, match="no settings for training its autoencoder"):
        train(recipe, dataset, tmp_path)


def test_the_loss_is_the_squared_error_of_the_noise(model: TextToImage):
    latents, labels = torch.randn(4, 4, 8, 8), torch.tensor([1, 2, 3, 4])
    found = model.loss(latents, labels, generator(0, "loss"), dropout=0.0)
    stream = generator(0, "loss")
    expected = []
    times, noise = torch.randint(1000, (4,), generator=stream), torch.randn(4, 4, 8, 8, generator=stream)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    for n, label in enumerate(labels):
        kept = (1 - betas).cumprod(0)[times[n]]
        noised = kept.sqrt() * latents[n] + (1 - kept).sqrt() * noise[n]
        given = model.embedded([DIGITS.class_names[label]])
        expected.append((model.denoise(noised[None], times[n : n + 1], given) - noise[n]).square().mean())
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)
    lost = model.loss(latents, labels, generator(0, "loss"), dropout=0.9999)
    swapped = model.loss(latents, labels.flip(0), generator(0, "loss"), dropout=0.9999)
    assert float(lost) == float(swapped) != float(found)
