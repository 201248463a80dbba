"""Settings, presets, reductions, golden outputs and the loop that makes sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import rd3.methods
from rd3.datasets import dataset_info, dataset_names
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, UnknownName
from rd3.methods import METHODS, resolve_settings
from rd3.methods._base import published, reductions
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe, trial_recipes, trial_set

TOY = ToyDataset()
GOLDEN = json.loads(Path(__file__).with_name("golden_methods.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_every_dataset_resolves_with_every_method(name):
    for dataset in dataset_names():
        info = dataset_info(dataset)
        settings = resolve_settings(name, info, 1)
        assert METHODS.get(name)().resolve_size(settings, info, 1) == settings
        if name != "random":
            assert published(name, info).source


def test_published_settings_of_sre2l():
    def fields(dataset, *names):
        settings = resolve_settings("sre2l", dataset_info(dataset), 1)
        return tuple(getattr(settings, name) for name in names)

    names = ("iterations", "lr", "bn_weight", "batch_classes", "jitter", "two_sided", "crop_scale_min", "flip")
    assert fields("imagenet1k", *names) == (4000, 0.25, 0.01, 100, 32, False, 0.08, True)
    assert fields("imagenette", *names) == (4000, 0.25, 0.01, 10, 32, False, 0.08, True)
    assert fields("tinyimagenet", *names) == (4000, 0.1, 1.0, 100, 4, True, 0.08, True)
    assert fields("cifar100", *names) == (1000, 0.25, 0.01, 100, 4, False, None, False)
    assert fields("cifar10", *names) == (1000, 0.25, 0.01, 10, 4, False, None, False)
    assert fields("cifar10", "beta1", "beta2", "first_multiplier") == (0.5, 0.9, 10.0)


def test_nearest_is_said_where_no_script_exists():
    nearest = {name: published("sre2l", dataset_info(name)).nearest for name in dataset_names()}
    assert not nearest["cifar100"] and not nearest["imagenet1k"] and not nearest["tinyimagenet"]
    assert nearest["cifar10"] and nearest["imagenette"] and nearest["tiny-imagenet-64"] and nearest["digits"]
    assert not published("rded", dataset_info("cifar10")).nearest
    assert published("rded", dataset_info("imagenette-224")).nearest


def test_presets_name_datasets_and_settings_that_exist():
    known = {*dataset_names(), "default", "32px", "64px", "224px"}
    for path in (Path(rd3.methods.__file__).parent / "presets").glob("*.yaml"):
        rows = yaml.safe_load(path.read_text())
        assert set(rows) <= known
        fields = {*METHODS.get(path.stem).Settings.model_fields, "source", "nearest", "reduces", "at_ipc"}
        assert all(set(row) <= fields for row in rows.values())
        some = [values for row in rows.values() for values in row.get("at_ipc", {}).values()]
        assert all(set(values) <= fields - {"at_ipc"} for values in some)


def test_reductions_count_work_alone():
    digits, cifar10 = dataset_info("digits"), dataset_info("cifar10")
    assert reductions("sre2l", digits, resolve_settings("sre2l", digits, 1)) == {"iterations": (100, 1000)}
    assert reductions("sre2l", cifar10, resolve_settings("sre2l", cifar10, 1)) == {}
    fewer = resolve_settings("sre2l", cifar10, 1, {"iterations": 50, "lr": 0.1, "jitter": 1})
    assert reductions("sre2l", cifar10, fewer) == {"iterations": (50, 1000)}
    assert reductions("rded", digits, resolve_settings("rded", digits, 1)) == {}
    fewer = resolve_settings("rded", cifar10, 1, {"mipc": 30, "num_crop": 1, "factor": 1})
    assert reductions("rded", cifar10, fewer) == {"mipc": (30, 300), "num_crop": (1, 5)}


@pytest.mark.parametrize(("name", "published_steps"), [("minimax", 50), ("d4m", 50), ("mgd3", 50)])
def test_settings_that_a_preset_leaves_out_are_published_as_their_defaults(name, published_steps):
    woof = dataset_info("imagewoof")
    assert reductions(name, woof, resolve_settings(name, woof, 10)) == {}
    fewer = resolve_settings(name, woof, 10, {"steps": 40})
    assert reductions(name, woof, fewer) == {"steps": (40, published_steps)}


def test_a_preset_may_differ_at_an_ipc_and_overrides_win():
    cifar10, cifar100 = dataset_info("cifar10"), dataset_info("cifar100")
    batches = {ipc: resolve_settings("edc", cifar10, ipc).batch_size for ipc in (1, 10, 50)}
    assert batches == {1: 10, 10: 100, 50: 500}
    assert resolve_settings("edc", cifar100, 1).iterations == 2000
    fewer = resolve_settings("edc", cifar10, 1, {"iterations": 60})
    assert fewer.iterations == 60
    assert reductions("edc", cifar10, fewer, 1) == {"iterations": (60, 75)}
    assert reductions("edc", cifar10, fewer, 10) == {"iterations": (60, 75)}
    assert reductions("edc", cifar10, resolve_settings("edc", cifar10, 1), 1) == {}


def test_a_method_brings_its_published_settings(monkeypatch):
    class Settings(rd3.methods.Settings):
        draws: int = 1
        lr: float = 0.5

    class Own(METHODS.get("random")):
        """Random images, drawn several times."""

        counted = ("draws",)
        presets = {
            "cifar10": {"source": "a paper", "draws": 100, "at_ipc": {10: {"draws": 30}}},
            "default": {"source": "the same", "nearest": True, "draws": 7},
        }

    Own.Settings = Settings
    monkeypatch.setattr(METHODS, "_things", {**METHODS._things, "own": Own})
    cifar10, digits = dataset_info("cifar10"), dataset_info("digits")
    assert [resolve_settings("own", cifar10, ipc).draws for ipc in (1, 10)] == [100, 30]
    assert resolve_settings("own", digits, 1) == Settings(draws=7, lr=0.5)
    fewer = resolve_settings("own", cifar10, 1, {"draws": 9})
    assert reductions("own", cifar10, fewer, 1) == {"draws": (9, 100)}


def test_a_counted_setting_without_a_default_is_reduced_below_a_preset_alone(monkeypatch):
    class Settings(rd3.methods.Settings):
        draws: int

    class Own(METHODS.get("random")):
        """Random images, drawn several times."""

        counted = ("draws",)
        presets = {"cifar10": {"source": "a paper", "draws": 100}, "default": {"source": "the same"}}

    Own.Settings = Settings
    monkeypatch.setattr(METHODS, "_things", {**METHODS._things, "own": Own})
    for name, cut in (("cifar10", {"draws": (9, 100)}), ("digits", {})):
        info = dataset_info(name)
        assert reductions("own", info, resolve_settings("own", info, 1, {"draws": 9})) == cut


def test_wrong_settings():
    info = dataset_info("cifar10")
    with pytest.raises(UnknownName, match=r"Method sre2l has no setting 'iteration'\. Fix: did you mean 'iterations'"):
        resolve_settings("sre2l", info, 1, {"iteration": 5})
    with pytest.raises(UnknownName, match=r"Method random has no setting 'x'\. Fix: leave it out: there are none"):
        resolve_settings("random", info, 1, {"x": 5})
    with pytest.raises(BadValue, match=r"Method sre2l, setting iterations: .* got 0"):
        resolve_settings("sre2l", info, 1, {"iterations": 0})
    with pytest.raises(BadValue, match=r"Method rded, setting num_crop: .* got 'many'"):
        resolve_settings("rded", info, 1, {"num_crop": "many"})
    with pytest.raises(UnknownName, match="did you mean 'sre2l'"):
        resolve_settings("sre2", info, 1)


def _make(recipe, folder, dataset=TOY, teachers=None, **options):
    teachers = teachers if teachers is not None else tuple(toy_teacher(TOY) for _key in recipe.teachers)
    return synthesize(recipe, dataset, teachers, folder, **options)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_outputs(name, tmp_path):
    """A method that gives other images needs another version.  Rows: mean pixel of each quarter of each image."""
    recipes = trial_recipes(name, TOY, 2)
    recipe, golden = recipes[-1], GOLDEN[name]
    trial_set(recipes, TOY, [toy_teacher(TOY) for _key in recipe.teachers], tmp_path, tmp_path / "made")
    quarters = F.avg_pool2d(SyntheticSet.open(tmp_path / "made").images.float().mean(1), 16)
    assert (recipe.version, recipe.settings) == (golden["version"], golden["settings"])
    torch.testing.assert_close(quarters.flatten(1), torch.tensor(golden["quarters"]), atol=0.5, rtol=0)


def test_a_kill_in_mid_set_loses_one_block_at_most(tmp_path, monkeypatch):
    recipe = trial_recipe("rded", TOY, 2)
    whole = _make(recipe, tmp_path / "whole")
    method, made = METHODS.get("rded"), []
    make = method.make

    def dies_on_the_second(self, block, ctx):
        made.append(block.index)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make(self, block, ctx)

    monkeypatch.setattr(method, "make", dies_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        _make(recipe, tmp_path / "killed")
    resumed = _make(recipe, tmp_path / "killed")
    assert made == [0, 1, 1, 2] and resumed.content == whole.content
    assert resumed.phases.keys() == {"select", "stitch"}
    again = _make(recipe, tmp_path / "killed")
    assert made == [0, 1, 1, 2] and again == resumed


def test_shares_of_blocks_are_put_together(tmp_path):
    recipe = trial_recipe("rded", TOY, 2)
    notes = []
    assert _make(recipe, tmp_path, only_blocks=[2]) is None
    assert _make(recipe, tmp_path, only_blocks=[0], progress=lambda *told: notes.append(told)) is None
    assert notes[0] == (0.0, "block 1 of 1") and notes[-1] == (1.0, "1 of 1 blocks")
    fractions = [fraction for fraction, _note in notes]
    assert fractions == sorted(fractions)
    manifest = _make(recipe, tmp_path, only_blocks=[1], shared_machine=False)
    assert manifest is not None and manifest.shared_machine is False and manifest.threads == torch.get_num_threads()
    assert manifest.peak_mib > 1 and manifest.device.startswith("cpu")


def test_what_does_not_fit_together(tmp_path):
    recipe = trial_recipe("sre2l", TOY, 1)
    with pytest.raises(BadValue, match="needs version 9 of method sre2l, this is version 1"):
        _make(recipe.model_copy(update={"version": 9}), tmp_path)
    for settings in (recipe.settings | {"of_tomorrow": 1}, recipe.settings | {"iterations": "many"}):
        with pytest.raises(BadValue, match=r"^The recipe has other settings than method sre2l takes: \w+: .*\. Fix: m"):
            _make(recipe.model_copy(update={"settings": settings}), tmp_path)
    with pytest.raises(ClassOrderError, match="has class list"):
        _make(recipe, tmp_path, ToyDataset(classes=4))
    with pytest.raises(DataCorrupt, match=r"Dataset toy has fingerprint .*, the recipe expects"):
        _make(recipe, tmp_path, ToyDataset(per_class=9))
    with pytest.raises(BadValue, match="names 1 teachers, got 0"):
        _make(recipe, tmp_path, teachers=())
    with pytest.raises(BadValue, match=r"Teacher 0 .* is in training mode or not frozen"):
        _make(recipe, tmp_path, teachers=(toy_teacher(TOY).train(),))


def test_planning_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from rd3.methods import METHODS, resolve_settings; import rd3.synthetic_set\n"
        "[METHODS.get(name) for name in METHODS.names()]\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_bf16_is_a_field_of_the_recipe(tmp_path):
    fp32 = trial_recipe("sre2l", TOY, 1)
    bf16 = fp32.model_copy(update={"precision": "bf16"})
    first, second = _make(fp32, tmp_path / "fp32"), _make(bf16, tmp_path / "bf16")
    assert fp32.model_dump() != bf16.model_dump() and first.content != second.content
    images = [SyntheticSet.open(tmp_path / name).images.float() for name in ("fp32", "bf16")]
    assert (images[0] - images[1]).abs().mean() < 20


def test_names():
    assert {"random", "rded", "sre2l"} <= set(METHODS.names())
