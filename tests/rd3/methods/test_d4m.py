"""D4M against diffusers' pipeline, its prompts, and its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file

from rd3.datasets import Roots, dataset_info, open_dataset
from rd3.diffusion.backbone import Backbone
from rd3.diffusion.derivations.prototypes import FILE, Prototypes
from rd3.diffusion.families.dit import DiT
from rd3.diffusion.families.text_to_image import TextToImage
from rd3.diffusion.prompts import NEGATIVE
from rd3.errors import BadValue, ClassOrderError
from rd3.methods import METHODS, resolve_settings
from rd3.methods._base import published
from rd3.methods._prompts import class_prompts
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.planning.sets import plan_set
from rd3.recipe import Data, DerivedRecipe, SetRecipe
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet

SIZES = {"autoencoder": [8, 8, 8], "unet": [8, 16], "heads": 2, "text_width": 16, "text_depth": 1, "length": 32}
DIGITS = dataset_info("digits")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    return open_dataset("digits", Roots(None, tmp_path_factory.mktemp("home")))


def plan(dataset: Any, ipc: int, **values: Any) -> tuple[DerivedRecipe, SetRecipe]:
    data = Data(name="digits", fingerprint=dataset.fingerprint)
    planned = plan_set(
        "d4m", DIGITS, data, ipc, {"steps": 10, **values}, teacher="teacher", teacher_of=lambda role: pytest.fail(role),
        backbone_of=lambda role: backbone_recipe(backbone_role(DIGITS, role), DIGITS, dataset.fingerprint),
    )  # fmt: skip
    *_backbones, derived, recipe = planned.recipes(4)
    assert isinstance(derived, DerivedRecipe) and isinstance(recipe, SetRecipe)
    return derived, recipe


def made(dataset: Any, model: Backbone, tmp: Path, ipc: int, **options: Any) -> SyntheticSet:
    derived, recipe = plan(dataset, ipc)
    prototypes = tmp / "prototypes"
    if not prototypes.is_dir():
        prototypes.mkdir(parents=True)
        settings = Prototypes.Settings.model_validate(derived.settings)
        Prototypes().derive(derived, settings, model, dataset, prototypes, lambda fraction, note: None)
    synthesize(recipe, dataset, [], tmp / "set", backbones=[model], derived=[prototypes], **options)
    return SyntheticSet.open(tmp / "set")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    TextToImage.create(SIZES, DIGITS, generator(0, "tiny")).save(place)
    return place


def test_every_image_is_the_pipelines_from_its_own_prototype(dataset: Any, folder: Path, tmp_path: Path):
    found = made(dataset, TextToImage.load(folder, DIGITS).frozen(), tmp_path, 2)
    prototypes = load_file(tmp_path / "prototypes" / FILE)["prototypes"]
    assert prototypes.shape == (10, 2, 4, 8, 8)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for label in (0, 7):
        for k in range(2):
            [image] = pipeline(
                DIGITS.class_names[label], image=prototypes[label, k][None], strength=0.7, num_inference_steps=10,
                guidance_scale=8.0, negative_prompt=NEGATIVE, generator=generator(4, "synthesize", "sample", label, k),
                output_type="pt",
            ).images  # fmt: skip
            [own] = [n for n in range(20) if int(found.labels[n]) == label][k : k + 1]
            expected = (image * 255).round().to(torch.uint8)
            assert (found.images[own].int() - expected.int()).abs().max() <= 1


def test_any_shares_of_blocks_give_the_same_images(dataset: Any, folder: Path, tmp_path: Path):
    model = TextToImage.load(folder, DIGITS).frozen()
    together = made(dataset, model, tmp_path / "together", 1, blocks_at_once=16)
    alone = made(dataset, model, tmp_path / "alone", 1, blocks_at_once=1)
    assert (together.images.int() - alone.images.int()).abs().max() <= 1


def test_the_plan_holds_the_prompts_and_as_many_prototypes_as_images(dataset: Any):
    derived, recipe = plan(dataset, 3)
    assert recipe.settings["prompts"] == list(DIGITS.class_names) and recipe.settings["clusters"] == 3
    assert derived.settings == {"clusters": 3, "algorithm": "minibatch", "expand": 10}
    assert recipe.derived == (derived.key,) and recipe.backbones == (derived.backbone,)
    assert plan(dataset, 6, clusters=3)[0].key == derived.key != plan(dataset, 6)[0].key
    assert plan(dataset, 3, prompts=list(DIGITS.class_names))[1].key == recipe.key


def test_settings_are_the_published_ones():
    settings = resolve_settings("d4m", dataset_info("cifar10"), 10)
    own = settings.model_dump(exclude={"prompts", "backbone", "clusters"})
    assert own == {
        "expand": 10, "negative_prompt": "cartoon, anime, painting", "steps": 50, "strength": 0.7, "guidance": 8.0,
    }  # fmt: skip
    assert published("d4m", dataset_info("imagenet1k")).values["expand"] == 1
    assert published("d4m", dataset_info("imagewoof")).nearest
    assert not METHODS.get("d4m")().nests(settings, DIGITS)


def test_d4m_needs_a_text_to_image_model(dataset: Any, tmp_path: Path):
    dit = DiT.create({"width": 8, "depth": 1, "heads": 2, "patch": 8}, DIGITS, generator(0, "tiny")).frozen()
    with pytest.raises(BadValue, match="D4M samples from a text-to-image model, and this backbone is a dit model"):
        made(dataset, dit, tmp_path, 1)


def swapped(names: tuple[str, ...], a: int, b: int) -> list[str]:
    changed = list(names)
    changed[a], changed[b] = changed[b], changed[a]
    return changed


def test_a_permuted_list_of_prompts_is_refused_with_its_first_wrong_class():
    info = dataset_info("cifar100")
    with pytest.raises(ClassOrderError, match=r"class 3, 'bear', is 'bicycle', which names class 8, 'bicycle'\. Fix"):
        class_prompts(swapped(info.class_names, 3, 8), info)
    with pytest.raises(ClassOrderError, match="class 3, 'bear', is 'a photo of a bicycle'"):
        class_prompts([f"a photo of a {name}" for name in swapped(info.class_names, 3, 8)], info)


def test_the_published_order_of_cifar_100_is_refused():
    """Its label file lists classes by superclass (beaver, dolphin, otter, ...)."""
    info = dataset_info("cifar100")
    first = ["beaver", "dolphin", "otter", "seal", "whale"]
    published_order = [*first, *(name for name in info.class_names if name not in first)]
    with pytest.raises(ClassOrderError, match="The prompt of class 0, 'apple', is 'beaver', which names class 4"):
        resolve_settings("d4m", info, 1, {"prompts": published_order})


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ClassOrderError, match=r"There are 9 prompts, digits has 10 classes\. Fix: list one prompt"):
        resolve_settings("d4m", DIGITS, 1, {"prompts": list(DIGITS.class_names[:9])})


def test_own_wordings_of_prompts_are_possible():
    info = dataset_info("imagenette")
    own = [f"a photo of a {name}, high quality" for name in info.class_names]
    own[0], own[4] = "Tinca tinca", "a church beside a golf ball"
    assert class_prompts(own, info) == tuple(own)


def test_another_wording_of_a_class_may_be_the_name_of_another():
    """CLIP's prompt for the class ear is a corn cob, although corn is a class; equal prompts are still refused."""
    info = dataset_info("imagenet1k")
    names = [f"a photo of a {name}" for name in info.class_names]
    ear, corn = info.class_names.index("ear"), info.class_names.index("corn")
    names[ear] = "a photo of a corn cob"
    assert class_prompts(names, info) == tuple(names)
    names[ear] = names[corn]
    with pytest.raises(ClassOrderError, match="'ear', is 'a photo of a corn', which names class"):
        class_prompts(names, info)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "tinyimagenet", "imagenette", "imagenet1k"])
def test_class_names_are_prompts_that_fit(name: str):
    info = dataset_info(name)
    assert class_prompts(info.class_names, info) == info.class_names
    changed = {
        own: prompt for own, prompt in zip(info.class_names, class_prompts(None, info), strict=True) if own != prompt
    }
    twice = {"crane": ("n02012849", "n03126707"), "maillot": ("n03710637", "n03710721")}
    expected = {f"{prompt} ({wnid})": prompt for prompt, wnids in twice.items() for wnid in wnids}
    assert changed == {own: prompt for own, prompt in expected.items() if own in info.class_names}
    assert len(changed) == {"imagenet1k": 4, "tinyimagenet": 1}.get(name, 0)
