"""Datasets in files: every layout, the copies RD3 derives from them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from rd3.datasets import (
    FileSource,
    Roots,
    dataset_fingerprint,
    dataset_info,
    fingerprint_in,
    open_dataset,
)
from rd3.datasets._classes import check_order
from rd3.datasets._decode import fit_size
from rd3.datasets._parquet import shards
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.recipe import Normalisation

CLASSES = ("ant", "bee", "cat")


class Toy(FileSource):
    """Three classes, 12 training and 6 test images."""

    test_names = ("test", "val")

    def __init__(self, resolution=32, resize=32):
        self.info = dataset_info("digits").model_copy(
            update={
                "name": "toy",
                "class_ids": CLASSES,
                "class_names": CLASSES,
                "resolution": resolution,
                "test_resize": resize,
                "train_count": 12,
                "test_count": 6,
                "train_per_class": 4,
                "normalisation": Normalisation(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
            }
        )


def picture(seed, size=(32, 32), mode="RGB", kind="PNG"):
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def parquet(path, images, labels, names=None, columns=("image", "label")):
    structs = [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(structs, kind), columns[1]: pa.array(labels, pa.int64())})
    if names:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)


TRAIN = [picture(i) for i in range(12)]
TEST = [picture(100 + i, mode="L" if i == 3 else "RGB") for i in range(6)]
TRAIN_LABELS, TEST_LABELS = [i % 3 for i in range(12)], [i % 3 for i in range(6)]


@pytest.fixture
def roots(tmp_path):
    parquet(tmp_path / "data/toy/train-00000-of-00002.parquet", TRAIN[:7], TRAIN_LABELS[:7], CLASSES)
    parquet(tmp_path / "data/toy/train-00001-of-00002.parquet", TRAIN[7:], TRAIN_LABELS[7:], CLASSES)
    parquet(tmp_path / "data/toy/test.parquet", TEST, TEST_LABELS)
    return Roots(tmp_path / "data", tmp_path / "home")


def folders(base, train="train", test="val"):
    """The same images as class folders."""
    for part, images, labels in ((train, TRAIN, TRAIN_LABELS), (test, TEST, TEST_LABELS)):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = base / part / CLASSES[label] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)


def plain(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def test_parquet_in_shards_is_decoded_in_order(roots):
    toy = Toy().open(roots)
    assert toy.labels("train").tolist() == TRAIN_LABELS and toy.labels("test").tolist() == TEST_LABELS
    assert torch.equal(toy.images("train", range(12)), torch.stack([plain(image) for image in TRAIN]))
    assert torch.equal(toy.images("test", [3, 1]), torch.stack([plain(TEST[3]), plain(TEST[1])]))


def test_the_same_pixels_have_the_same_fingerprint_in_another_container(roots, tmp_path):
    first = Toy().open(roots).fingerprint
    other = tmp_path / "other/toy"
    order = sorted(range(12), key=lambda i: (TRAIN_LABELS[i], i))
    test_order = sorted(range(6), key=lambda i: (TEST_LABELS[i], i))
    parquet(other / "train.parquet", [TRAIN[i] for i in order], [TRAIN_LABELS[i] for i in order])
    parquet(other / "test.parquet", [TEST[i] for i in test_order], [TEST_LABELS[i] for i in test_order])
    folders(tmp_path / "third/toy")
    by_class, in_folders = (Toy().open(Roots(tmp_path / name, tmp_path / "home")) for name in ("other", "third"))
    assert by_class.fingerprint == in_folders.fingerprint != first
    assert torch.equal(by_class.images("test", range(6)), in_folders.images("test", range(6)))


def test_a_fingerprint_is_not_that_of_another_size_that_was_cached(roots):
    small, larger = Toy(), Toy(resize=40)
    cached = small.fingerprint(roots)
    assert larger.fingerprint(roots) == larger.open(roots).fingerprint != cached


def test_second_opening_decodes_nothing(roots, monkeypatch):
    first = Toy().open(roots)
    monkeypatch.setattr("rd3.datasets._records.decode", None)
    second = Toy().open(roots)
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.images("train", range(12)), first.images("train", range(12)))
    assert sorted(path.suffix for path in (roots.home / "data").iterdir()) == [".lock", ".safetensors"]


@pytest.mark.parametrize("damage", ["[object Object]", "cut", "bytes", "empty"])
def test_a_damaged_fingerprint_is_measured_again(roots, damage):
    fingerprint = Toy().fingerprint(roots)
    assert fingerprint == Toy().open(roots).fingerprint
    (cached,) = (roots.home / "data").glob("*.fingerprint")
    content = cached.read_bytes()
    damaged = {
        "[object Object]": b"[object Object]" + content[15:],
        "cut": content[:31],
        "bytes": b"\xff\x00" + content[2:],
        "empty": b"",
    }
    cached.write_bytes(damaged[damage])
    assert Toy().fingerprint(roots) == fingerprint
    assert cached.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncate", "alter"])
def test_a_damaged_decoded_file_is_made_again(roots, damage):
    fingerprint = Toy().open(roots).fingerprint
    (cached,) = (roots.home / "data").glob("*.safetensors")
    content = bytearray(cached.read_bytes())
    content[-100] ^= 1
    cached.unlink()
    cached.write_bytes(content[:-50] if damage == "truncate" else content)
    again = Toy().open(roots)
    assert again.fingerprint == fingerprint
    assert torch.equal(again.images("train", range(12)), torch.stack([plain(image) for image in TRAIN]))


def test_changed_files_are_noticed(roots):
    before = Toy().open(roots).fingerprint
    parquet(roots.data / "toy/test.parquet", [*TEST[:5], picture(7, (32, 32), "L")], TEST_LABELS)
    assert Toy().open(roots).fingerprint != before


def test_several_open_at_once(roots):
    """One writes, under a name of its own that is moved into place, and the others wait for it."""
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _n: Toy().open(roots).fingerprint, range(8)))) == 1
    assert sorted(path.suffix for path in (roots.home / "data").iterdir()) == [".lock", ".safetensors"]


@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_streams_decode_on_demand_as_torchvision_would(tmp_path, layout):
    sizes = [(40, 30), (30, 45), (32, 32), (28, 51)]
    images = [picture(i, sizes[i % 4], kind="JPEG") for i in range(12)]
    base = tmp_path / "data/toy"
    if layout == "parquet":
        parquet(base / "train.parquet", images, sorted(TRAIN_LABELS), columns=("img", "fine_label"))
        parquet(base / "validation.parquet", images[:6], sorted(TEST_LABELS))
    else:
        for part, count, labels in (("train", 12, TRAIN_LABELS), ("validation", 6, TEST_LABELS)):
            for index, label in enumerate(sorted(labels)):
                path = base / part / CLASSES[label] / f"{index:02}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(images[:count][index])
    toy = Toy(resolution=72, resize=80)
    toy.test_names = ("validation",)
    opened = toy.open(Roots(tmp_path / "data", tmp_path / "home"))
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(80), torchvision.transforms.CenterCrop(72)]
    )
    expected = []
    for encoded in images:
        with Image.open(io.BytesIO(encoded)) as image:
            expected.append(torch.from_numpy(np.asarray(transform(image.convert("RGB"))).copy()).permute(2, 0, 1))
    assert torch.equal(opened.images("train", range(12)), torch.stack(expected))
    assert torch.equal(opened.images("test", [4, 2]), torch.stack([expected[4], expected[2]]))
    assert torch.equal(opened.original("train", 1), plain(images[1]))
    several = zip(opened.originals("train", [3, 1]), [images[3], images[1]], strict=True)
    assert all(torch.equal(original, plain(encoded)) for original, encoded in several)
    assert opened.fingerprint == toy.open(Roots(tmp_path / "data", tmp_path / "home")).fingerprint


def test_streamed_copy_that_was_altered_is_refused(roots):
    toy = Toy(resolution=72, resize=72)
    toy.open(roots)
    (cached,) = (roots.home / "data").glob("*.safetensors")
    content = bytearray(cached.read_bytes())
    content[4096 + len(TRAIN[0]) + 20] ^= 1
    cached.unlink()
    cached.write_bytes(content)
    opened = toy.open(roots)
    opened.images("train", [0, 2])
    with pytest.raises(DataCorrupt, match=r"train-00000-of-00002\.parquet, row 1: .*modified"):
        opened.images("train", [1])


def test_sizes_that_fit_are_left_alone():
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    assert fit_size(image, 32, 32) is image


def test_missing_dataset_names_the_folders_and_a_fix(tmp_path):
    with pytest.raises(DataMissing) as caught:
        open_dataset("cifar10", Roots(tmp_path / "data", tmp_path / "home"))
    assert str(tmp_path / "data" / "cifar10") in caught.value.message
    assert str(tmp_path / "home" / "data" / "cifar10") in caught.value.message
    assert caught.value.fix == "rd3 data fetch cifar10"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("name", "archive", "fix"),
    [
        ("cifar10", "cifar-10-python.tar.gz", "tar -xf {file} -C {folder}"),
        ("cifar10", "cifar10/CIFAR-10-python.tgz", "tar -xf {file} -C {folder}"),
        ("cifar100", "cifar-100-python.tar.gz", "tar -xf {file} -C {folder}"),
        ("tinyimagenet", "tiny-imagenet-200.zip", "unzip {file} -d {folder}"),
        ("tinyimagenet", "TINY-IMAGENET-200.ZIP", "unzip {file} -d {folder}"),
        ("imagenette", "imagenette2-320.tgz", "tar -xf {file} -C {folder}"),
        ("cifar10", "cifar-100-python.tar.gz", None),
        ("imagenette", "imagewoof2.tgz", None),
        ("cifar10", "cifar10.parquet", None),
    ],
)
def test_an_archive_that_is_not_unpacked_is_named(tmp_path, name, archive, fix):
    file = tmp_path / "my data" / archive
    file.parent.mkdir(parents=True)
    file.write_bytes(b"packed")
    with pytest.raises(DataMissing) as caught:
        open_dataset(name, Roots(tmp_path / "my data", tmp_path / "home"))
    assert (f"{file} is not unpacked" in caught.value.message) == bool(fix)
    if fix:
        command = fix.format(file=shlex.quote(str(file)), folder=shlex.quote(str(file.parent)))
        assert caught.value.fix == f"unpack it: {command}"


def test_a_folder_in_another_layout_is_said_to_hold_something_else(tmp_path):
    (tmp_path / "data/cifar10/batches").mkdir(parents=True)
    (tmp_path / "data/cifar10/meta.txt").touch()
    holds = r"data/cifar10 holds batches, meta\.txt, which is not a known layout of it\."
    with pytest.raises(DataMissing, match=holds):
        open_dataset("cifar10", Roots(tmp_path / "data", tmp_path / "home"))


def test_a_folder_of_datasets_one_level_deeper_is_named(tmp_path):
    for folder in ("cifar-10-batches-py", "imagenet1k", "mine"):
        (tmp_path / "data/my data" / folder).mkdir(parents=True)
    roots = Roots(tmp_path / "data", tmp_path / "home")
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("imagewoof", "imagenet1k")):
        with pytest.raises(DataMissing) as caught:
            open_dataset(name, roots)
        assert caught.value.message.endswith(f", but it is one level deeper, in {tmp_path / 'data/my data' / folder}.")
        assert caught.value.fix == f"export RD3_DATA='{tmp_path / 'data/my data'}'"
    with pytest.raises(DataMissing, match="rd3 data fetch cifar100"):
        open_dataset("cifar100", roots)


def test_a_dataset_one_level_deeper_in_its_folder_is_moved_up(tmp_path):
    """The command is run as it is printed."""
    place, roots = tmp_path / "data/imagenette-224", Roots(tmp_path / "data", tmp_path / "home")
    deeper = place / "a folder"
    for class_id in dataset_info("imagenette-224").class_ids:
        for split in ("train", "val"):
            (deeper / split / class_id).mkdir(parents=True)
    (place / "closed").mkdir(mode=0)
    with pytest.raises(DataMissing) as caught:
        open_dataset("imagenette-224", roots)
    assert caught.value.message.endswith(f", but it is one level deeper, in {deeper}.")
    subprocess.run(caught.value.fix.removeprefix("move its content up: "), shell=True, check=True)
    with pytest.raises(DataCorrupt, match=rf"{place} holds 0"):
        open_dataset("imagenette-224", roots)
    (place / "again").mkdir()
    (place / "train").rename(place / "again/train")
    (place / "again").rename(place / "train")
    with pytest.raises(DataCorrupt, match=f"The class folders of {place}/train are a level deeper, in {place}/train/t"):
        open_dataset("imagenette-224", roots)


def test_parquet_in_the_folder_of_a_configuration(roots):
    """As the hub has CIFAR-10: ``plain_text/train-00000-of-00001.parquet``."""
    before = Toy().open(roots)
    moved = roots.data / "toy/plain_text"
    moved.mkdir()
    for path in (roots.data / "toy").glob("*.parquet"):
        path.rename(moved / path.name)
    (roots.data / "toy/.cache").mkdir()
    assert Toy().open(roots).fingerprint == before.fingerprint
    (roots.data / "toy/other").mkdir()
    (moved / "test.parquet").rename(roots.data / "toy/other/test.parquet")
    assert Toy().open(roots).fingerprint == before.fingerprint, "a folder for each split"
    shutil.copy(roots.data / "toy/other/test.parquet", moved)
    with pytest.raises(DataCorrupt, match="in several subfolders: other, plain_text") as caught:
        Toy().open(roots)
    assert caught.value.fix == f"keep one of them, as {roots.data / 'toy/data'}"


def test_missing_split(roots):
    (roots.data / "toy/test.parquet").unlink()
    with pytest.raises(DataMissing, match="expected train and test or val"):
        Toy().open(roots)


def test_missing_shard(roots):
    (roots.data / "toy/train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataMissing, match="1 Parquet files of split train, expected 2 by their names"):
        Toy().open(roots)


def test_shards_whose_numbers_are_not_padded_are_in_their_order(tmp_path):
    for number in range(11):
        parquet(tmp_path / f"data/toy/train-{number}-of-11.parquet", [TRAIN[number]], [TRAIN_LABELS[number]])
    assert [path.name for path in shards(tmp_path / "data/toy")["train"]] == [
        f"train-{n}-of-11.parquet" for n in range(11)
    ]


def test_truncated_parquet(roots):
    path = roots.data / "toy/test.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataCorrupt, match=r"test\.parquet is damaged: it has .* bytes"):
        Toy().open(roots)


def test_parquet_with_a_damaged_page(roots):
    path = roots.data / "toy/test.parquet"
    content = bytearray(path.read_bytes())
    content[4:1500] = bytes(1496)
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match=r"test\.parquet"):
        Toy().open(roots)


@pytest.mark.parametrize("resolution", [32, 72])
def test_undecodable_image_names_file_and_row(roots, resolution):
    images = [*TEST[:4], TEST[4][: len(TEST[4]) // 2], TEST[5]]
    parquet(roots.data / "toy/test.parquet", images, TEST_LABELS)
    with pytest.raises(DataCorrupt, match=r"test\.parquet, row 4 cannot be decoded as an image"):
        Toy(resolution, resolution).open(roots).images("test", range(6))
    assert not list(roots.home.glob("data/.*"))


def test_row_without_an_image(roots):
    parquet(roots.data / "toy/test.parquet", [*TEST[:2], None, *TEST[3:]], TEST_LABELS)
    with pytest.raises(DataCorrupt, match="row 2 has no image bytes"):
        Toy().open(roots)


@pytest.mark.parametrize("label", [3, -1])
def test_label_out_of_range_names_file_and_row(roots, label):
    labels = list(TRAIN_LABELS[7:])
    labels[2] = label
    parquet(roots.data / "toy/train-00001-of-00002.parquet", TRAIN[7:], labels)
    with pytest.raises(DataCorrupt, match=rf"train-00001-of-00002\.parquet, row 2: label {label}, expected 0 to 2"):
        Toy().open(roots)


def test_wrong_columns(roots):
    parquet(roots.data / "toy/test.parquet", TEST, TEST_LABELS, columns=("picture", "label"))
    with pytest.raises(DataCorrupt, match="columns picture, label; expected image or img"):
        Toy().open(roots)


def test_class_list_in_another_order(roots):
    parquet(roots.data / "toy/test.parquet", TEST, TEST_LABELS, ("ant", "cat", "bee"))
    with pytest.raises(ClassOrderError, match=r"class 1 as 'cat', expected 'bee' \(first of 2 differences\)"):
        Toy().open(roots)


def test_class_list_of_dataset_info_json(roots):
    (roots.data / "toy/dataset_info.json").write_text(json.dumps({"class_names": ["bee", "ant", "cat"]}))
    with pytest.raises(ClassOrderError, match=r"dataset_info\.json lists class 0 as 'bee', expected 'ant'"):
        Toy().open(roots)


@pytest.mark.parametrize("classes", [10, 100, 200])
def test_a_tenth_of_the_names_may_be_spelled_otherwise(classes):
    ids = [f"n{label:08d}" for label in range(classes)]
    names = [f"name {label}" for label in range(classes)]
    info = Toy().info.model_copy(update={"class_ids": tuple(ids), "class_names": tuple(names)})
    tenth = classes // 10
    check_order([f"other {label}" for label in range(tenth)] + names[tenth:], info, "a file")
    with pytest.raises(ClassOrderError, match="class 0 as 'other 0', expected 'name 0'"):
        check_order([f"other {label}" for label in range(tenth + 1)] + names[tenth + 1 :], info, "a file")
    with pytest.raises(ClassOrderError, match="class 0 as 'name 1', expected 'name 0'"):
        check_order([names[1], *names[1:]], info, "a file")


def test_incomplete_copy_is_refused(roots):
    parquet(roots.data / "toy/test.parquet", TEST[:3], TEST_LABELS[:3])
    with pytest.raises(DataCorrupt, match="holds 12 training and 3 test images; toy has 12 and 6"):
        Toy().open(roots)


def test_a_missing_class_folder_is_named(tmp_path):
    folders(tmp_path / "data/toy")
    (tmp_path / "data/toy/train/bee").rename(tmp_path / "elsewhere")
    with pytest.raises(DataCorrupt, match="2 of the 3 class folders of toy; the first missing one is bee"):
        Toy().open(Roots(tmp_path / "data", tmp_path / "home"))


def test_images_that_are_in_no_class_folders_yet(tmp_path):
    """As ILSVRC2012_img_val.tar and ILSVRC2012_img_train.tar unpack."""
    base, aside = tmp_path / "my data/toy", tmp_path / "aside"
    folders(base)
    roots = Roots(tmp_path / "my data", tmp_path / "home")
    whole = Toy().open(roots)
    (base / "val").rename(aside)
    (base / "val").mkdir()
    for path in aside.glob("*/*"):
        shutil.copy(path, base / "val" / f"{path.parent.name}-{path.name}")
    with pytest.raises(DataCorrupt, match="0 of the 3") as caught:
        Toy().open(roots)
    assert caught.value.fix == "move every image into a folder that is named by its class"
    shutil.rmtree(base / "val")
    aside.rename(base / "val")
    for name in CLASSES:
        shutil.make_archive(str(base / "train" / name), "tar", base / "train" / name)
        shutil.rmtree(base / "train" / name)
    with pytest.raises(DataCorrupt, match="0 of the 3") as caught:
        Toy().open(roots)
    subprocess.run(["sh", "-c", caught.value.fix.partition(": ")[2]], check=True)
    assert Toy().open(roots).fingerprint == whole.fingerprint


def empty_images(base, counts):
    info = dataset_info("imagenette")
    for part, count in counts.items():
        for index in range(count):
            folder = base / part / info.class_ids[index % 10]
            if index < 10:
                folder.mkdir(parents=True)
            (folder / f"{index}.JPEG").touch()


@pytest.mark.parametrize(("name", "asked", "layout"), [("imagenette-224", "imagenette", "imagenette2/val")])
def test_a_subset_is_never_the_whole(tmp_path, name, asked, layout):
    folder, part = layout.split("/")
    empty_images(tmp_path / "data" / folder, {"train": 2_000, part: 1_500})
    with pytest.raises(DataCorrupt, match=f"holds {name} .2000 training and 1500 test images., not {asked}") as caught:
        open_dataset(asked, Roots(tmp_path / "data", tmp_path / "home"))
    assert caught.value.fix.startswith(f"use dataset {name}")


def test_imagenette_is_found_within_imagenet(tmp_path):
    """The ten classes of ImageNet-1K's folders are Imagenette in ImageNet's split, and the info says so."""
    empty_images(tmp_path / "data/imagenet1k", {"train": 12_894, "val": 500})
    (tmp_path / "data/imagenet1k/train/n00000001").mkdir()
    opened = open_dataset("imagenette", Roots(tmp_path / "data", tmp_path / "home"))
    assert (opened.info.train_count, opened.info.test_count) == (12_894, 500)
    assert "split as ImageNet-1K" in opened.info.source and opened.info.train_per_class == 1_289


def test_imagenet_without_sorted_test_images_hides_no_imagenette(tmp_path):
    roots = Roots(tmp_path / "data", tmp_path / "home")
    empty_images(tmp_path / "data/imagenet1k", {"train": 20})
    (tmp_path / "data/imagenet1k/val").mkdir()
    holds = r"imagenet1k holds train, val, which is not a known layout of it\. Fix: rd3 data fetch imagenette"
    with pytest.raises(DataMissing, match=holds):
        open_dataset("imagenette", roots)
    first = tmp_path / "data/imagenet1k/val" / dataset_info("imagenette").class_ids[0]
    first.mkdir()
    with pytest.raises(DataCorrupt, match="imagenet1k/val has 1 of the 10 class folders of imagenette"):
        open_dataset("imagenette", roots)
    first.rmdir()
    empty_images(tmp_path / "home/data/imagenette", {"train": 20, "val": 10})
    with pytest.raises(DataCorrupt, match="home/data/imagenette holds 20 training and 10 test images"):
        open_dataset("imagenette", roots)


def test_official_cifar_archive_is_checked_before_it_is_read(tmp_path, monkeypatch):
    """torchvision's layout; the MD5 sums are those of small stand-ins."""
    folder = tmp_path / "data/cifar10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums, pixels = {}, {}
    for name, content in {
        "data_batch_1": {
            "data": rng.integers(0, 256, (40, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(40)],
        },
        "test_batch": {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))},
        "batches.meta": {"label_names": list(dataset_info("cifar10").class_names)},
    }.items():
        encoded = pickle.dumps(content)
        (folder / name).write_bytes(encoded)
        sums[name], pixels[name] = hashlib.md5(encoded).hexdigest(), content.get("data")
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr("rd3.datasets.cifar.BatchRecords.__len__", lambda self: 40 if self.train else 10)
    monkeypatch.setattr(
        "rd3.datasets._source.FileSource.check_counts", lambda self, found, training_only: self.complete()[0]
    )
    roots = Roots(tmp_path / "data", tmp_path / "home")
    opened = open_dataset("cifar10", roots)
    assert np.array_equal(opened.images("train", range(40)).numpy(), pixels["data_batch_1"].reshape(-1, 3, 32, 32))
    pulled = shutil.copytree(folder, tmp_path / "pulled/cifar10")  # `rd3 data pull` has it under this name
    assert fingerprint_in(pulled, Roots(None, tmp_path / "another home")) == opened.fingerprint
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels["test_batch"], "labels": [0] * 10}))
    with pytest.raises(DataCorrupt, match="MD5 differs"):
        open_dataset("cifar10", roots)


def test_tiny_imagenet_archive(tmp_path):
    """The archive's own layout: images/ inside the class folders, validation labels in a text file."""
    from rd3.datasets.tinyimagenet import TinyImageNet

    ids = dataset_info("tinyimagenet").class_ids
    base = tmp_path / "data/tiny-imagenet-200"
    lines = []
    for label, class_id in enumerate(ids):
        images = base / "train" / class_id / "images"
        images.mkdir(parents=True)
        for k in range(2):
            (images / f"{class_id}_{k}.JPEG").write_bytes(picture(label, (64, 64), kind="JPEG"))
        lines.append(f"val_{label}.JPEG\t{ids[199 - label]}\t0\t0\t63\t63")
    (base / "val/images").mkdir(parents=True)
    for label in range(200):
        (base / f"val/images/val_{label}.JPEG").write_bytes(picture(300 + label, (64, 64), kind="JPEG"))
    (base / "val/val_annotations.txt").write_text("\n".join(lines) + "\n\n")  # an editor's last line

    class Small(TinyImageNet):
        info = TinyImageNet.info.model_copy(update={"train_count": 400, "test_count": 200})

    opened = Small().open(Roots(tmp_path / "data", tmp_path / "home"))
    assert opened.labels("train").tolist() == [label for label in range(200) for _k in range(2)]
    assert opened.labels("test").tolist() == list(range(199, -1, -1))
    assert torch.equal(opened.images("test", [7])[0], plain(picture(307, (64, 64), kind="JPEG")))
    (base / "train").rename(base / "elsewhere")
    with pytest.raises(DataMissing, match=r"/train does not exist\. Fix: extract the complete archive of tinyimagenet"):
        Small().look(base)
    (base / "elsewhere").rename(base / "train")
    (base / "val/val_annotations.txt").write_text(lines[0].replace(ids[199], "n00000000"))
    with pytest.raises(DataCorrupt, match="line 1: 'n00000000' is not a class"):
        Small().open(Roots(tmp_path / "data", tmp_path / "home"))
    for label in range(200):  # moved into class folders, with the text file still there
        (base / "val" / ids[199 - label]).mkdir()
        (base / f"val/images/val_{label}.JPEG").rename(base / "val" / ids[199 - label] / f"val_{label}.JPEG")
    (base / "val/images").rmdir()
    moved = Small().open(Roots(tmp_path / "data", tmp_path / "home"))
    assert moved.labels("test").tolist() == list(range(200))
    assert torch.equal(moved.images("test", [192]), opened.images("test", [7]))


@pytest.mark.parametrize(
    ("resolution", "layout"), [(32, "parquet"), (224, "parquet"), (32, "folders"), (224, "folders")]
)
def test_training_only_opens_no_test_file(roots, tmp_path, resolution, layout):
    source = Toy(resolution=resolution, resize=resolution)
    home = tmp_path / "data/toy"
    if layout == "folders":
        for path in home.glob("*.parquet"):
            path.unlink()
        folders(home)
    whole = source.open(roots)
    for path in [*home.glob("test*.parquet"), *(home / "val").rglob("*.png")]:
        path.unlink()
        path.mkdir()  # there by its name, and nothing that anybody can read
    with pytest.raises((DataCorrupt, DataMissing)):
        source.open(Roots(roots.data, tmp_path / "other")).images("test", [0])
    part = source.open_training(Roots(roots.data, tmp_path / "other"))
    assert torch.equal(part.images("validation", [0, 2]), whole.images("validation", [0, 2]))
    assert (part.labels("fit") == whole.labels("fit")).all()
    assert part.fingerprint == source.fingerprint(Roots(roots.data, tmp_path / "third"), training_only=True)
    assert part.fingerprint != whole.fingerprint
    assert part.info.test_count == 6
    for ask in (part.labels, lambda split: part.images(split, [0]), lambda split: part.original(split, 0)):
        with pytest.raises(BadValue, match="toy was opened without its test split"):
            ask("test")


def test_a_source_without_files_refuses_its_test_split_as_well(tmp_path):
    roots = Roots(None, tmp_path)
    whole, part = open_dataset("digits", roots), open_dataset("digits", roots, training_only=True)
    assert torch.equal(part.images("train", range(3)), whole.images("train", range(3)))
    assert (part.labels("validation") == whole.labels("validation")).all()
    assert part.fingerprint == dataset_fingerprint("digits", roots, training_only=True) != whole.fingerprint
    for ask in (part.labels, lambda split: part.images(split, [0]), lambda split: part.original(split, 0)):
        with pytest.raises(BadValue, match="without its test split"):
            ask("test")


def test_training_only_still_counts_the_training_images(roots):
    (roots.data / "toy/train-00001-of-00002.parquet").unlink()
    (roots.data / "toy/train-00000-of-00002.parquet").rename(roots.data / "toy/train.parquet")
    with pytest.raises(DataCorrupt, match="holds 7 training images; toy has 12"):
        Toy().open_training(roots)
