"""Registering, fetching and looking after datasets; and the real ones, where they are."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rd3.datasets import (
    Roots,
    add_folder,
    dataset_fingerprint,
    dataset_info,
    dataset_names,
    dataset_source,
    doctor,
    fetch,
    open_dataset,
    shorter_sides,
)
from rd3.datasets._user import register, registry_file
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing, StoreError, Unsupported


def image_folder(base, classes=("b", "a", "c"), count=10, size=(40, 50)):
    for label, name in enumerate(classes):
        (base / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((size[1], size[0], 3), (80 * label + index) % 256, np.uint8)
            Image.fromarray(pixels).save(base / name / f"{index}.png")
    return base


@pytest.fixture
def roots(tmp_path):
    return Roots(None, tmp_path / "home")


@pytest.mark.parametrize("resolution", [32, 224])
def test_class_folders_become_a_dataset(tmp_path, roots, resolution):
    info = add_folder("mine", image_folder(tmp_path / "mine"), roots, resolution)
    assert info.class_ids == ("a", "b", "c") and (info.train_count, info.test_count) == (24, 6)
    assert dataset_info("mine", roots) == info and "mine" in dataset_names(roots)
    opened = open_dataset("mine", roots)
    assert opened.labels("test").tolist() == [0, 1, 2] * 2
    assert opened.images("train", [0]).shape == (1, 3, resolution, resolution)
    # grey value 80 * (place in the unsorted list) + index: every image is in one part only, under its label
    seen = {part: opened.images(part, range(len(opened.labels(part))))[:, 0, 0, 0] for part in ("train", "test")}
    assert sorted(torch.cat(list(seen.values())).tolist()) == sorted(80 * k + i for k in range(3) for i in range(10))
    assert all(
        int(value) // 80 == 1 for value, label in zip(seen["test"], opened.labels("test"), strict=True) if not label
    )
    assert opened.fingerprint == open_dataset("mine", roots).fingerprint


def test_normalisation_is_measured_on_the_training_images(tmp_path, roots):
    base = tmp_path / "mine"
    image_folder(base / "train", count=4)
    image_folder(base / "test", count=2)
    info = add_folder("mine", base, roots, 32, say=lambda _note: None)
    values = np.array([80 * label + index for label in range(3) for index in range(4)]) / 255
    assert info.normalisation.mean[1] == pytest.approx(values.mean(), abs=1e-4)
    assert info.normalisation.std[1] == pytest.approx(values.std(), abs=1e-4)
    assert (info.train_count, info.test_count) == (12, 6)


@pytest.mark.parametrize(("size", "nearest"), [((32, 40), 32), ((45, 45), 32), ((64, 48), 64), ((500, 180), 224)])
def test_how_large_images_are_and_which_resolution_is_nearest(tmp_path, roots, size, nearest):
    base = image_folder(tmp_path / "mine", size=size)
    add_folder("mine", base, roots, say=lambda _note: None)
    sides = shorter_sides("mine", roots)
    assert (sides.least, sides.median, sides.most, sides.nearest) == (*[min(size)] * 3, nearest)
    assert str(sides) == str(min(size))
    for index in range(10):  # one class of three is larger
        Image.new("RGB", (300, 300)).save(base / "c" / f"{index}.png")
    add_folder("mine", base, roots, say=lambda _note: None)
    assert str(shorter_sides("mine", roots)) == f"{min(size)} to 300, median {min(size)}"


def test_what_cannot_be_registered(tmp_path, roots):
    base = image_folder(tmp_path / "mine", count=2)
    with pytest.raises(BadValue, match="is a built-in dataset"):
        add_folder("cifar10", base, roots)
    with pytest.raises(BadValue, match="Invalid dataset name"):
        add_folder("../mine", base, roots)
    with pytest.raises(BadValue, match="Resolution 100"):
        add_folder("mine", base, roots, 100)
    with pytest.raises(DataMissing, match="is not a folder"):
        add_folder("mine", tmp_path / "absent", roots)
    with pytest.raises(BadValue, match="class a has 1 training images after the test split"):
        add_folder("mine", base, roots)
    (base / "empty").mkdir()
    with pytest.raises(BadValue, match="empty holds no image"):
        add_folder("mine", base, roots)
    split = tmp_path / "split"
    image_folder(split / "train")
    with pytest.raises(DataMissing, match="but no folder test"):
        add_folder("mine", split, roots)
    image_folder(split / "test", ("a", "b", "d"))
    with pytest.raises(
        ClassOrderError, match="has the class folder 'd', which train does not have and has no class folder 'c'"
    ):
        add_folder("mine", split, roots)
    (split / "test" / "d").rename(split / "test" / "c")
    (split / "test" / "e").mkdir()
    with pytest.raises(ClassOrderError, match="has the class folder 'e'") as caught:
        add_folder("mine", split, roots)
    assert caught.value.fix.startswith(f"remove {split}/test/e, which is empty, or ")
    assert not roots.home.exists()


def test_registrations_at_once_are_all_kept(roots, tmp_path):
    """Each reads the file, adds its own and writes it back."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: register(f"d{n}", {"test": None, "info": {}}, tmp_path, roots), range(40)))
    assert len(json.loads(registry_file(roots).read_text())) == 40


def test_a_registered_folder_that_changed(tmp_path, roots):
    base = image_folder(tmp_path / "mine")
    add_folder("mine", base, roots, 32)
    (base / "a" / "3.png").unlink()
    with pytest.raises(DataCorrupt, match="26 training and 3 test images; mine was registered with 24 and 6") as caught:
        open_dataset("mine", roots)
    assert caught.value.fix == f"register it again: rd3 data add mine --folder {base} --resolution 32"
    add_folder("mine", base, roots, 32)
    assert open_dataset("mine", roots).info.train_per_class == 8


def test_a_registered_folder_whose_content_is_a_level_deeper(tmp_path, roots):
    base = tmp_path / "mine"
    image_folder(base / "train")
    image_folder(base / "test")
    add_folder("mine", base, roots, 32, say=lambda _note: None)
    base.rename(tmp_path / "copy")
    base.mkdir()
    (tmp_path / "copy").rename(base / "mine")
    said = f"{base / 'train'} does not exist, but {base / 'mine'} contains such a folder"
    with pytest.raises(DataMissing, match=said) as caught:
        open_dataset("mine", roots)
    assert caught.value.fix == f"move its content up: mv {base / 'mine'}/* {base}/"


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_registered_folder_that_lost_a_split(tmp_path, roots, part):
    base = tmp_path / "mine"
    image_folder(base / "train")
    image_folder(base / "test")
    add_folder("mine", base, roots, 32, say=lambda _note: None)
    (base / part).rename(base / "other")
    with pytest.raises(DataMissing, match=f"{base / part} does not exist"):
        open_dataset("mine", roots)
    [finding] = doctor(roots, ["mine"])
    assert finding.state == "wrong"


def test_a_registered_folder_without_a_test_split_whose_class_was_emptied(tmp_path, roots):
    base = image_folder(tmp_path / "mine")
    add_folder("mine", base, roots, 32)
    for path in (base / "b").iterdir():
        path.unlink()
    with pytest.raises(DataCorrupt, match="class b has no images"):
        open_dataset("mine", roots)


def test_registrations_that_cannot_be_read(roots):
    roots.home.mkdir()
    (roots.home / "datasets.json").write_text("{")
    with pytest.raises(DataCorrupt, match=r"datasets\.json is not JSON"):
        dataset_names(roots)
    (roots.home / "datasets.json").write_text('{"mine": {"folder": "/x"}}')
    with pytest.raises(DataCorrupt, match=r"datasets\.json, test: Field required"):
        dataset_names(roots)


def test_doctor_tells_ok_missing_and_wrong(tmp_path, roots):
    base = image_folder(tmp_path / "mine")
    add_folder("mine", base, roots, 32)
    broken = roots.home / "data/cifar100"
    broken.mkdir(parents=True)
    (broken / "train.parquet").write_bytes(b"PAR1")
    found = {finding.dataset: finding for finding in doctor(roots)}
    assert found["digits"].state == "ok" and found["mine"].train_count == 24
    assert found["cifar10"].state == "missing" and found["cifar10"].fix == "rd3 data fetch cifar10"
    assert found["cifar100"].state == "wrong" and str(broken) in found["cifar100"].message
    assert set(found) == set(dataset_names(roots))


def test_fetch_puts_a_whole_download_in_place(roots, monkeypatch):
    def download(self, folder):
        image_folder(folder / "partial")
        raise OSError("no network")

    monkeypatch.setattr("rd3.datasets.cifar.Cifar10.fetch", download)
    with pytest.raises(DataMissing, match="no network"):
        fetch("cifar10", roots)
    assert list((roots.home / "data").iterdir()) == []
    with pytest.raises(Unsupported, match="cannot download"):
        fetch("imagenet1k", roots)
    assert fetch("digits", roots).layout == "scikit-learn"


def test_a_download_that_fills_the_disk_is_not_blamed_on_the_network(roots, monkeypatch):
    def download(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rd3.datasets.cifar.Cifar10.fetch", download)
    with pytest.raises(StoreError, match=f"no space left in {roots.home / 'data'}.*Fix: free space there"):
        fetch("cifar10", roots)


@pytest.fixture
def small_cifar(monkeypatch):
    """CIFAR-10 with 20 training and 10 test images, and a download of it from this machine."""

    def download(self, folder):
        for part, count in (("train", 2), ("test", 1)):
            image_folder(folder / part, self.info.class_ids, count, (32, 32))

    monkeypatch.setattr(
        "rd3.datasets.cifar.Cifar10.info",
        dataset_info("cifar10").model_copy(update={"train_count": 20, "test_count": 10}),
    )
    monkeypatch.setattr("rd3.datasets.cifar.Cifar10.fetch", download)
    return download


def test_two_fetches_at_once_both_give_the_dataset(roots, monkeypatch, small_cifar):
    together = threading.Barrier(2, timeout=60)

    def download(self, folder):
        small_cifar(self, folder)
        together.wait()

    monkeypatch.setattr("rd3.datasets.cifar.Cifar10.fetch", download)
    with ThreadPoolExecutor(2) as pool:
        copies = list(pool.map(lambda _one: fetch("cifar10", roots), range(2)))
    assert copies[0] == copies[1] and copies[0].folder == roots.home / "data/cifar10"
    assert [path.name for path in (roots.home / "data").iterdir()] == ["cifar10"]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o775), (0o022, 0o755), (0o077, 0o700)])
def test_a_fetched_folder_obeys_the_umask(roots, small_cifar, umask, mode):
    before = os.umask(umask)
    try:
        folder = fetch("cifar10", roots).folder
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "train", folder.parent)] == [mode] * 3


def test_fetch_names_a_proxy_that_is_no_address(roots, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:PORT")
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    with pytest.raises(DataMissing, match=r"InvalidURL.*correct or unset HTTPS_PROXY") as caught:
        fetch("cifar10", roots)
    assert "proxy:PORT" in caught.value.fix and "secret" not in str(caught.value)


def test_fetch_does_not_overwrite(roots):
    (roots.home / "data/cifar10").mkdir(parents=True)
    with pytest.raises(StoreError, match="exists, but does not hold"):
        fetch("cifar10", roots)


def test_home_that_cannot_be_written(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StoreError, match="Cannot write"):
        add_folder("mine", image_folder(tmp_path / "mine"), Roots(None, tmp_path / "home"), 32)


@pytest.mark.parametrize("name", ["imagenette-224", "imagewoof-224"])
def test_real_streamed_subset(data_root, tmp_path, name):
    opened = open_dataset(name, Roots(data_root, tmp_path))
    info = dataset_info(name)
    assert np.bincount(opened.labels("train")).tolist() == [info.train_per_class] * 10
    rows = pq.read_table(data_root / name / "validation.parquet").slice(40, 3).to_pylist()
    for position, row in enumerate(rows, 40):
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(opened.images("test", [position])[0].numpy(), expected)
        assert opened.labels("test")[position] == row["label"]
    # the first multiple of the class count is balanced, for whoever takes a prefix
    assert np.bincount(opened.labels("validation")[:50]).tolist() == [5] * 10


def test_real_tiny_subset_is_not_tiny_imagenet(data_root, tmp_path):
    (tmp_path / "tinyimagenet").symlink_to(data_root / "tiny-imagenet-64")
    with pytest.raises(DataCorrupt, match="holds tiny-imagenet-64"):
        open_dataset("tinyimagenet", Roots(tmp_path, tmp_path / "home"))


def test_real_folders_are_all_well(data_root, tmp_path):
    found = {finding.dataset: finding for finding in doctor(Roots(data_root, tmp_path))}
    for name in ("cifar10", "cifar100", "tiny-imagenet-64", "imagenette-224", "imagewoof-224"):
        declared = json.loads((data_root / name / "dataset_info.json").read_text())["splits"]
        rows = sorted(split["rows"] for split in declared.values())
        assert found[name].state == "ok"
        assert sorted((found[name].train_count, found[name].test_count)) == rows
    assert found["imagenette"].state == "missing"


def test_a_fingerprint_is_remembered_while_the_files_stay(tmp_path, monkeypatch):
    roots = Roots(None, tmp_path)
    first = dataset_fingerprint("digits", roots)
    assert first == open_dataset("digits", roots).fingerprint
    source = type(dataset_source("digits"))

    def opened(self, roots):
        raise AssertionError("opened again")

    monkeypatch.setattr(source, "open", opened)
    assert dataset_fingerprint("digits", roots) == first
    monkeypatch.setattr(source, "stamp", lambda self, roots, training_only: ["other files"])
    with pytest.raises(AssertionError, match="opened again"):
        dataset_fingerprint("digits", roots)
