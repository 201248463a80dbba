"""A user's dataset in Parquet files, against the same images in class folders."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from rd3.datasets import Roots, add_folder, fingerprint_in, open_dataset, registration, shorter_sides
from rd3.errors import BadValue, DataCorrupt, DataMissing, RD3Error
from tests.rd3.datasets.test_files import CLASSES, TEST, TEST_LABELS, TRAIN, TRAIN_LABELS, folders, parquet


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(data=None, home=tmp_path / "home")


def hub(folder: Path, test: str = "test", names=CLASSES) -> Path:
    """As the hub lays it out: shards in ``data``."""
    parquet(folder / "data/train-00000-of-00002.parquet", TRAIN[:7], TRAIN_LABELS[:7], names)
    parquet(folder / "data/train-00001-of-00002.parquet", TRAIN[7:], TRAIN_LABELS[7:], names)
    parquet(folder / f"data/{test}-00000-of-00001.parquet", TEST, TEST_LABELS, names)
    return folder


@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_it_is_the_dataset_that_its_folders_are(test, roots, tmp_path):
    folders(tmp_path / "folders", test="test")
    notes: list[str] = []
    of_folders = add_folder("a", tmp_path / "folders", roots, 32, say=lambda note: None)
    info = add_folder("b", hub(tmp_path / "b", test), roots, 32, say=lambda note: notes.append(note.text))
    counts = ("train_count", "test_count", "train_per_class", "normalisation", "resolution", "class_ids")
    assert sorted(CLASSES) == list(CLASSES), "the folders have the same class order"
    assert [getattr(info, name) for name in counts] == [getattr(of_folders, name) for name in counts]
    assert f"class order, as the column 'label' states it: {', '.join(CLASSES)}" in notes
    one, other = open_dataset("a", roots), open_dataset("b", roots)
    for split in ("train", "test"):
        rows = [torch.tensor(data.labels(split)).argsort(stable=True) for data in (one, other)]
        assert torch.equal(one.images(split, rows[0].numpy()), other.images(split, rows[1].numpy()))
    assert shorter_sides("b", roots).median == 32
    assert fingerprint_in(tmp_path / "b", roots, registration("b", roots)) == other.fingerprint


@pytest.mark.parametrize("resolution", [32, 224])
def test_processes_that_open_it_at_once_write_one_copy(resolution, roots, tmp_path):
    add_folder("b", hub(tmp_path / "hub"), roots, resolution, say=lambda note: None)
    for path in (roots.home / "data").glob("b-*"):
        path.unlink()
    together = threading.Barrier(4)

    def opened(_number: int) -> tuple[str, set[int]]:
        together.wait()
        fingerprint = open_dataset("b", roots).fingerprint
        return fingerprint, {path.stat().st_ino for path in (roots.home / "data").glob("b-*.safetensors")}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(opened, range(4)))
    assert len(found[0][1]) == 1
    assert found == [found[0]] * 4, "a second copy would have another inode"


def test_the_class_order_is_the_one_that_is_stated(roots, tmp_path):
    info = add_folder("b", hub(tmp_path / "hub", names=CLASSES[::-1]), roots, 32, say=lambda note: None)
    assert info.class_ids == tuple(CLASSES[::-1])


def test_labels_without_names_are_numbers(roots, tmp_path):
    notes: list[str] = []
    info = add_folder("b", hub(tmp_path / "hub", names=None), roots, 32, say=lambda note: notes.append(note.text))
    assert info.class_ids == ("0", "1", "2")
    assert any("'label' has no class names: classes are called 0 to 2" in note for note in notes)


def test_labels_of_a_type_that_is_too_small(roots, tmp_path):
    """300 names for labels of uint8; wrapped int8 without names; numbers that end where their type ends."""

    def typed(names, kind, labels):
        for split in ("train", "test"):
            path = tmp_path / f"many/{split}.parquet"
            parquet(path, [TRAIN[0]] * len(labels), labels, names)
            table = pq.read_table(path)
            wrapped = pa.array(np.array(labels).astype(kind.to_pandas_dtype()), kind)
            pq.write_table(table.set_column(1, pa.field("label", kind), wrapped), path)
        return tmp_path / "many"

    names, labels, notes = [f"c{label}" for label in range(300)], list(range(300)), []
    with pytest.raises(BadValue, match=r"labels in column 'label' of .* are uint8, .* up to 255; .* of b is 299"):
        add_folder("b", typed(names, pa.uint8(), labels), roots, 32, say=lambda note: None)
    with pytest.raises(DataCorrupt, match=r"label -128, expected 0 to 127 .* has a type that ends at 127") as caught:
        add_folder("b", typed(None, pa.int8(), labels[:200]), roots, 32, say=lambda note: None)
    assert "int64 from where they were made" in caught.value.fix
    folder = typed(None, pa.uint8(), labels[:256] * 2)
    info = add_folder("b", folder, roots, 32, say=lambda note: notes.append(note.text))
    assert info.num_classes == 256
    assert "'label' is uint8, whose largest number is 255: more classes would be wrapped" in notes


def test_test_images_among_the_training_images_are_counted(roots, tmp_path):
    folder = hub(tmp_path / "hub")
    parquet(folder / "data/test-00000-of-00001.parquet", [*TRAIN[:4], *TEST[4:]], [*TRAIN_LABELS[:4], *TEST_LABELS[4:]])
    notes: list[str] = []
    add_folder("b", folder, roots, 32, say=lambda note: notes.append(note.text))
    assert "4 of 6 test images compared are also among the training images" in notes


def test_of_two_test_splits_one_is_used_and_the_other_is_named(roots, tmp_path):
    hub(tmp_path / "hub")
    validation = tmp_path / "hub/data/validation-00000-of-00001.parquet"
    parquet(validation, TEST[:3], TEST_LABELS[:3], CLASSES)
    notes: list[str] = []
    info = add_folder("b", tmp_path / "hub", roots, 32, say=lambda note: notes.append(note.text))
    assert info.test_count == 6 and "validation (3 images) is not used: test is the test split" in notes
    _unlabelled(tmp_path / "hub")  # as ImageNet-1K on the hub
    with pytest.raises(DataCorrupt, match="label -1") as caught:
        add_folder("c", tmp_path / "hub", roots, 32, say=lambda note: None)
    assert caught.value.fix.endswith("c, or rename or remove the split test: then validation is the test split")
    (tmp_path / "hub/data/test-00000-of-00001.parquet").unlink()
    assert add_folder("c", tmp_path / "hub", roots, 32, say=lambda note: None).test_count == 3


def test_a_damaged_registered_file_is_named(roots, tmp_path):
    folder = hub(tmp_path / "hub")
    add_folder("b", folder, roots, 32, say=lambda note: None)
    file = folder / "data/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataCorrupt, match=r"test-00000-of-00001\.parquet"):
        open_dataset("b", roots)


def test_a_copy_of_the_hub_with_a_configuration(roots, tmp_path):
    (hub(tmp_path / "hub") / "data").rename(tmp_path / "hub/plain_text")
    assert add_folder("b", tmp_path / "hub", roots, 32, say=lambda note: None).num_classes == 3


def _labels(*values: int | None):
    def change(folder: Path) -> None:
        for file in (folder / "data").glob("*.parquet"):
            file.unlink()
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": image, "path": None} for image in TRAIN[: len(values)]], kind)
        for split in ("train", "test"):
            pq.write_table(
                pa.table({"image": images, "label": pa.array(values, pa.int64())}), folder / f"{split}.parquet"
            )

    return change


def _strings(folder: Path) -> None:
    for file in (folder / "data").glob("train*"):
        table = pq.read_table(file)
        pq.write_table(table.set_column(1, "label", pa.array(["cat"] * len(table))), file)


def _without(label: int, split: str):
    """Without the images of a class in one split."""

    def change(folder: Path) -> None:
        for file in (folder / "data").glob(f"{split}*"):
            table = pq.read_table(file)
            pq.write_table(table.filter(pc.not_equal(table["label"], label)), file)

    return change


def _unlabelled(folder: Path) -> None:
    parquet(folder / "data/test-00000-of-00001.parquet", TEST, [-1] * 6)


def _renamed(folder: Path) -> None:
    for file in (folder / "data").glob("train*"):
        file.rename(file.with_name(file.name.replace("train", "part")))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda folder: (folder / "data/test-00000-of-00001.parquet").unlink(), DataMissing, "expected train and test"),
        (lambda folder: (folder / "data/train-00001-of-00002.parquet").unlink(), DataMissing, "1 Parquet files of"),
        (_renamed, BadValue, "none of the training images by their names"),
        (_strings, BadValue, "Column 'label' of .* is string, expected class numbers"),
        (_labels(0, None, 1, 1), BadValue, "its 3 numbers are not those of classes from 0"),
        (_labels(), BadValue, "its 0 numbers are not those of classes"),
        (_labels(0, 1, 2**40), BadValue, "the largest is 1099511627776"),
        (_labels(0, 0, 1), BadValue, r"class 1 has 1 training images, expected 2 or more\. .*remove the class"),
        (
            _without(2, "test"),
            BadValue,
            r" has 0 test images, .*move some of its \d+ training images to",
        ),
        (_without(2, "train"), BadValue, r" has 0 training images, .* and number the others from 0 again"),
        (_unlabelled, DataCorrupt, "label -1, expected 0 to 2"),
        (lambda folder: parquet(folder / "data/test-00000-of-00001.parquet", [], []), BadValue, "has no test images"),
        (lambda folder: hub(folder, names=["x", "x", "y"]), BadValue, "names the classes x, x, y"),
        (lambda folder: hub(folder, names=["x"]), BadValue, "names the classes x"),
    ],
)
def test_what_cannot_be_registered_is_said_and_nothing_is(change, kind, message, roots, tmp_path):
    change(hub(tmp_path / "hub"))
    with pytest.raises(RD3Error, match=message) as caught:
        add_folder("b", tmp_path / "hub", roots, 32, say=lambda note: None)
    assert isinstance(caught.value, kind) and caught.value.fix
    assert registration("b", roots) is None
