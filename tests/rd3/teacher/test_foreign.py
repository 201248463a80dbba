"""Weights from elsewhere: formats, checks, the digest, and pruning to a dataset's classes."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rd3 import teacher
from rd3.datasets import Dataset, DatasetInfo, Split, dataset_info
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.models import build_network
from rd3.planning.teacher_roles import teacher_role
from rd3.recipe import Normalisation
from rd3.seeding import generator

CONSTANTS = Normalisation(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
OTHERS = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class Noise(Dataset):
    """Noise of a few classes; only what passes through matters here."""

    def __init__(self, class_ids: tuple[str, ...]):
        self.info = DatasetInfo(
            name="noise", source="made up", class_ids=class_ids, class_names=class_ids, resolution=32, test_resize=32,
            factor=1, normalisation=CONSTANTS, train_count=8, test_count=8, train_per_class=2,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        return "e" * 64

    def labels(self, split: Split) -> np.ndarray:
        return np.arange(8, dtype=np.int64) % self.info.num_classes

    def images(self, split: Split, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.original(split, index) for index in indices])

    def original(self, split: Split, index: int) -> torch.Tensor:
        return torch.randint(256, (3, 32, 32), generator=generator(0, split, index), dtype=torch.uint8)


@pytest.fixture
def dataset() -> Noise:
    return Noise(("a", "b", "c", "d"))


def weights(num_classes: int = 4) -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names, every value one that half precision holds too."""
    network = build_network("resnet18_w16", num_classes, 32, CONSTANTS, generator(5, "init")).network
    state = network.state_dict()
    return {name: value.half().float() if value.is_floating_point() else value for name, value in state.items()}


def bring(source: Path | str, dataset: Dataset, out: Path, **options: object):
    """Import; the networks here are random, so they are at chance."""
    options = {"allow_chance": True, "notice": lambda sentence: None} | options
    return teacher.import_weights(source, dataset=dataset, network="resnet18_w16", out=out, **options)


def test_all_formats_are_the_same_teacher(dataset, tmp_path):
    plain = weights()
    save_file(plain, tmp_path / "plain.safetensors")
    half = {name: value.half() if value.ndim > 1 else value for name, value in plain.items()}
    save_file(half, tmp_path / "half.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in plain.items()}}, tmp_path / "wrapped.pth")
    old = {name: value for name, value in plain.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pt")

    recipes = [
        bring(tmp_path / name, dataset, tmp_path / name.split(".")[0])[0]
        for name in ("plain.safetensors", "half.safetensors", "wrapped.pth", "old.pt")
    ]
    assert len({recipe.key for recipe in recipes}) == 1
    loaded = teacher.load(tmp_path / "half", recipes[0], dataset)
    assert all(torch.equal(value, plain[name]) for name, value in loaded.network.state_dict().items())
    assert loaded.network.fc.weight.dtype == torch.float32


def test_figures_are_counts_on_the_test_split(dataset, tmp_path):
    save_file(weights(), tmp_path / "plain.safetensors")
    recipe, result = bring(
        tmp_path / "plain.safetensors", dataset, tmp_path / "out", normalisation=OTHERS, split="train"
    )
    assert recipe.normalisation == OTHERS
    assert recipe.data.split == "train"
    assert result["tested"] == 8
    assert result["top1_pct"] == 100 * result["correct"] / 8
    manifest = teacher.TeacherManifest.read(tmp_path / "out")
    assert manifest.origin == "imported from plain.safetensors"
    network = teacher.load(tmp_path / "out", recipe, dataset)
    pixels = dataset.images("validation", range(8)) / 255
    with torch.no_grad():
        normalised = (pixels - 0.5) / 0.25
        right = network.network(normalised).argmax(dim=1) == torch.from_numpy(dataset.labels("validation"))
    assert int(right.sum()) == manifest.verification.correct


def test_the_digest_written_out(dataset):
    plain = weights()
    state = hashlib.sha256()
    for name, value in sorted(plain.items()):
        if not name.endswith("num_batches_tracked"):
            state.update(f"{name} float32 {tuple(value.shape)}\n".encode() + value.numpy().astype("<f4").tobytes())
    state.update(b"a\nb\nc\nd\n(0.4, 0.4, 0.4) (0.2, 0.2, 0.2)")
    digest = teacher.weights_digest(plain, ("a", "b", "c", "d"), CONSTANTS)
    assert digest == state.hexdigest()
    changed = plain | {"fc.bias": plain["fc.bias"] + 1e-3}
    others = [
        teacher.weights_digest(plain, ("b", "a", "c", "d"), CONSTANTS),
        teacher.weights_digest(plain, ("a", "b", "c", "d"), OTHERS),
        teacher.weights_digest(changed, ("a", "b", "c", "d"), CONSTANTS),
    ]
    assert len({digest, *others}) == 4


def test_pruning_keeps_the_rows_of_the_datasets_classes(tmp_path):
    full = weights(1000)
    save_file(full, tmp_path / "full.safetensors")
    # Tench, English springer and parachute are 0, 217 and 701 of the thousand.
    dataset = Noise(("n01440764", "n02102040", "n03888257"))
    recipe, _result = bring(tmp_path / "full.safetensors", dataset, tmp_path / "out", prune_to_classes=True)
    network = teacher.load(tmp_path / "out", recipe, dataset).network
    assert torch.equal(network.fc.weight, full["fc.weight"][[0, 217, 701]])
    assert torch.equal(network.fc.bias, full["fc.bias"][[0, 217, 701]])
    with pytest.raises(ClassOrderError, match="1000 classes"):
        bring(tmp_path / "full.safetensors", dataset, tmp_path / "again")
    with pytest.raises(ClassOrderError, match="is not an ImageNet-1K class"):
        bring(tmp_path / "full.safetensors", Noise(("a", "b")), tmp_path / "again", prune_to_classes=True)


def test_weights_of_another_network_name_the_first_difference(dataset, tmp_path):
    save_file(weights(), tmp_path / "w.safetensors")
    with pytest.raises(BadValue, match=r"bn1.bias is \(16,\), expected \(64,\)"):
        teacher.import_weights(tmp_path / "w.safetensors", dataset=dataset, network="resnet18", out=tmp_path / "out")
    lacking = {name: value for name, value in weights().items() if name != "layer3.0.conv1.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    with pytest.raises(BadValue, match=r"layer3\.0\.conv1\.weight is nothing"):
        bring(tmp_path / "lacking.safetensors", dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_weights(dataset, tmp_path):
    with pytest.raises(DataMissing, match="There is no file"):
        bring(tmp_path / "none.safetensors", dataset, tmp_path / "out")
    save_file(weights(), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("not a pickle")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"net": build_network("convnet", 4, 32, CONSTANTS)}, tmp_path / "code.pt")
    for name in ("cut.safetensors", "text.pt", "list.pt", "code.pt"):
        with pytest.raises(DataCorrupt):
            bring(tmp_path / name, dataset, tmp_path / "out")


def test_torchvision_weights_that_cannot_be_had(dataset, tmp_path, monkeypatch):
    def offline(*_args: object, **_options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataMissing, match=r"resnet18-f37072fd\.pth"):
        bring("torchvision:resnet18", dataset, tmp_path / "out")
    with pytest.raises(BadValue, match="no classifier 'resnet81'"):
        bring("torchvision:resnet81", dataset, tmp_path / "out")
    with pytest.raises(BadValue, match="no weights IMAGENET1K_V1 of vit_h_14, only IMAGENET1K_SWAG_E2E_V1, "):
        bring("torchvision:vit_h_14", dataset, tmp_path / "out")


def test_a_proxy_that_is_no_address_is_said(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:PORT")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DataMissing, match=r"cannot be downloaded \(nonnumeric port: 'PORT'\)"):
        bring("torchvision:resnet18", dataset, tmp_path / "out")


def test_the_shipped_role_names_the_cifar10_teacher(data_root):
    path = data_root.parent / "teachers" / "cifar10-resnet18.safetensors"
    if not path.is_file():
        pytest.skip(f"there is no {path.name} beside the datasets")
    imported = teacher_role(dataset_info("cifar10"), "resnet18-895")
    digest = teacher.weights_digest(load_file(path), dataset_info("cifar10").class_ids, imported.normalisation)
    assert digest == imported.weights
