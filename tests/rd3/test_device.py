"""A device that is not there is said in one sentence, wherever one can be named; what its libraries may not choose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import rd3
from rd3 import layer_statistics, run, teacher
from rd3.datasets import Roots, open_dataset
from rd3.device import repeatable_kernels, set_memory_format, torch_defaults, usable_device
from rd3.errors import BadValue
from rd3.methods import METHODS
from rd3.models import build_network
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.testing import ToyDataset, trial_recipe, trial_set


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_what_is_there_is_taken(no_gpu):
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "", torch.device("cuda", 1)])
def test_a_device_that_is_not_there(no_gpu, name):
    with pytest.raises(BadValue, match=r"^Device '.*' is not available\. Fix: use cpu$"):
        usable_device(name)


def test_the_devices_that_are_there_are_named(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert usable_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadValue, match=r"Device 'cuda:2' is not available\. Fix: use cpu or cuda or cuda:0 or cuda:1"):
        usable_device("cuda:2")


def test_mps_is_refused_as_it_lacks_float64(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    for name in ("mps", "mps:0", torch.device("mps")):
        with pytest.raises(BadValue, match=r"^Device 'mps.*' cannot be used, as it lacks float64\. Fix: use cpu$"):
            usable_device(name)
    with pytest.raises(BadValue, match=r"Device 'cuda' is not available\. Fix: use cpu$"):
        usable_device("cuda")


def test_everything_that_takes_a_device_says_so(no_gpu, tmp_path, capsys):
    digits = open_dataset("digits", Roots(None, tmp_path / "home"))
    images, labels = torch.zeros((10, 3, 32, 32), dtype=torch.uint8), torch.arange(10)
    nothing = SimpleNamespace(protocol=None)  # the device is looked at before all else
    for call in (
        lambda: rd3.evaluate(images, labels, digits, student="convnet", device="cuda"),
        lambda: synthesize(nothing, digits, [], tmp_path / "out", device="cuda"),
        lambda: teacher.train(nothing, digits, tmp_path / "out", device="cuda"),
        lambda: teacher.load(tmp_path, nothing, digits, device="cuda"),
        lambda: teacher.verify(tmp_path, nothing, digits, device="cuda"),
        lambda: layer_statistics.collect(nothing, None, digits, tmp_path / "out", device="cuda"),
    ):
        with pytest.raises(BadValue, match="Device 'cuda' is not available"):
            call()
    (tmp_path / "recipe.json").write_text("{}")
    words = [str(tmp_path / "recipe.json"), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert run.main([*words, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == "\nBadValue: Device 'cuda' is not available. Fix: use cpu\n"
    assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()


def _flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic


def test_repeatable_kernels_end_even_with_an_error():
    before = _flags()
    with pytest.raises(ZeroDivisionError), repeatable_kernels():
        assert _flags() == (False, True)
        _ = 1 / 0
    assert _flags() == before


def test_a_method_works_with_repeatable_kernels(tmp_path, monkeypatch):
    random, seen = METHODS.get("random"), []
    make = random.make

    def spy(self, block, ctx):
        seen.append(_flags())
        return make(self, block, ctx)

    monkeypatch.setattr(random, "make", spy)
    dataset = ToyDataset(side=16)
    with torch.backends.cudnn.flags(enabled=True, deterministic=False, allow_tf32=True):
        trial_set([trial_recipe("random", dataset, 2)], dataset, (), tmp_path, tmp_path / "made")
        assert _flags() == (True, False)
    assert set(seen) == {(False, True)}


def formats_inside(name: str, precision: str) -> set[bool]:
    """Whether the outputs of a network's layers that are images are channels last, after contiguous pixels."""
    info = ToyDataset().info
    network = build_network(name, 10, 32, info.normalisation, generator(0, "init"))
    set_memory_format(network, precision)
    seen = set()

    def look(module: torch.nn.Module, given: object, output: torch.Tensor) -> None:
        if output.dim() == 4 and min(output.shape[1:]) > 1:
            seen.add(output.is_contiguous(memory_format=torch.channels_last) and not output.is_contiguous())

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.BatchNorm2d):
            module.register_forward_hook(look)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        network(torch.rand(2, 3, 32, 32))
    return seen


@pytest.mark.parametrize("name", ["resnet18_w16", "convnet", "wrn_16_2", "mobilenet_v2"])
def test_convolutions_run_channels_last_whatever_the_pixels_are(name):
    assert formats_inside(name, "bf16") == formats_inside(name, "fp32") == {True}


@pytest.mark.parametrize("name", ["convnet_in", "convnet_d1", "convnet_d2", "convnet_w32"])
def test_networks_with_group_norms_stay_as_they_are(name):
    assert formats_inside(name, "bf16") == {False}


@pytest.mark.parametrize("name", ["resnet18_w16", "convnet", "mobilenet_v2"])
def test_the_format_of_the_pixels_changes_no_bit(name):
    network = build_network(name, 10, 32, ToyDataset().info.normalisation, generator(0, "init")).eval()
    set_memory_format(network, "bf16")
    pixels = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, last = network(pixels), network(pixels.contiguous(memory_format=torch.channels_last))
    assert torch.equal(plain, last)


@pytest.mark.parametrize("settings", [{"conv": "ieee"}, {"rnn": "ieee"}, {"conv": "tf32", "rnn": "ieee"}, {}])
def test_precisions_that_a_caller_has_set_for_single_operations_of_cudnn(settings):
    cudnn = torch.backends.cudnn
    try:
        for name, value in settings.items():
            getattr(cudnn, name).fp32_precision = value
        before = [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
        with torch_defaults(), repeatable_kernels():
            inside = [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]
        assert "tf32" not in inside
        assert [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision] == before
    finally:
        cudnn.allow_tf32 = True  # torch's default, for both
