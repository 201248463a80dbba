"""Folders of images, of sets and of datasets: what is read, what is not, in which order, and fixes that work."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rd3.datasets import Roots, add_folder, dataset_info, doctor, open_dataset
from rd3.datasets._folder import FolderRecords
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.inputs.files import IMAGE_SUFFIXES, by_number, order_text, sentence_on_unread
from rd3.inputs.pictures import rgb_of
from rd3.synthetic_set import SyntheticSet, import_folder, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
BYTES = TOY.images("train", range(6)).permute(0, 2, 3, 1).contiguous().numpy()
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3210\n"


def set_folder(base, names=("toy0", "toy1", "toy2"), suffix=".png"):
    """Image row k * 3 + label as ``<name>/<k>``."""
    for row, pixels in enumerate(BYTES):
        k, label = divmod(row, 3)
        (base / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(base / names[label] / f"{k}{suffix}")
    return base


def data_folder(base, names, count=4, side=16, kind="png"):
    """Every image of class number k (in the order of ``names``) has the value 20 * k + 5 and one white pixel."""
    for label, name in enumerate(names):
        (base / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((side, side, 3), 20 * label + 5, np.uint8)
            pixels[0, 0] = 255
            Image.fromarray(pixels).save(base / name / f"{index}.{kind}")
    return base


@pytest.fixture
def roots(tmp_path):
    return Roots(None, tmp_path / "home")


def registered(name, folder, roots, resolution=32):
    notes = []
    return add_folder(name, folder, roots, resolution, say=notes.append), " | ".join(note.text for note in notes)


def follow(fix, roots):
    """Run the ``rd3 data add`` command that a fix names."""
    words = shlex.split(fix[fix.index("rd3 data add") :])
    return registered(words[3], type(roots.home)(words[words.index("--folder") + 1]), roots, int(words[-1]))[0]


@pytest.mark.parametrize(
    ("names", "expected", "differs"),
    [
        ([str(n) for n in range(12)], [str(n) for n in range(12)], True),
        (["class10", "class9", "class2"], ["class2", "class9", "class10"], True),
        (["2_x", "10_x"], ["2_x", "10_x"], True),
        (["02", "10", "01"], ["01", "02", "10"], False),
        (["n02", "n10"], ["n02", "n10"], False),
        (["cat10", "dog2"], ["cat10", "dog2"], False),
        (["10", "2", "background"], ["10", "2", "background"], False),
        (["b", "a"], ["a", "b"], False),
    ],
)
def test_numbered_names_are_sorted_by_number(names, expected, differs):
    assert by_number(names) == expected
    assert by_number(reversed(names)) == expected
    assert ("would differ" in order_text(expected)) == differs


def test_numbered_class_folders_of_a_dataset_keep_their_numbers(tmp_path, roots):
    info, said = registered("mine", data_folder(tmp_path / "mine", [str(n) for n in range(12)]), roots)
    assert info.class_ids == tuple(map(str, range(12)))
    assert "class order (by number; alphabetically" in said and said.index(" 9, 10, 11") > 0
    opened = open_dataset("mine", roots)
    values = opened.images("train", range(info.train_count))[:, 0, 20, 20]
    assert [int(value - 5) // 20 for value in values] == opened.labels("train").tolist()


def test_a_registration_made_before_keeps_its_order(tmp_path, roots):
    folder = data_folder(tmp_path / "mine", [str(n) for n in range(11)])
    registered("mine", folder, roots)
    path = roots.home / "datasets.json"
    plain = json.loads(path.read_text())
    plain["mine"]["info"]["class_ids"] = plain["mine"]["info"]["class_names"] = sorted(map(str, range(11)))
    path.write_text(json.dumps(plain))
    assert dataset_info("mine", roots).class_ids[:3] == ("0", "1", "10")


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".PNG", ".TIF"])
def test_sets_and_datasets_read_the_same_suffixes(tmp_path, roots, suffix):
    import_folder(set_folder(tmp_path / "set", suffix=suffix), TOY, tmp_path / "out")
    assert SyntheticSet.open(tmp_path / "out").manifest.ipc == 2
    info, _said = registered("mine", data_folder(tmp_path / "data", ["a", "b"], kind=suffix[1:].lower()), roots)
    assert info.train_count + info.test_count == 8


def test_files_that_are_not_read_are_counted(tmp_path):
    base = set_folder(tmp_path / "set")
    (base / "toy0" / "deep").mkdir()
    for name in ("toy0/0.gif", "toy1/1.gif", "toy0/deep/2.png", "3.png", "README", ".hidden", "toy0/.DS_Store"):
        (base / name).touch()
    expected = "2 .gif, 2 .png outside the class folders, 1 without a suffix"
    assert sentence_on_unread(base, ["toy0", "toy1", "toy2"]) == f"5 files below {base} are not read: {expected}"
    (base / "toy3").symlink_to(set_folder(tmp_path / "other") / "toy0")
    (tmp_path / "other" / "toy0" / "a.txt").touch()
    (tmp_path / "other" / "toy0" / "back").symlink_to(base)
    assert (sentence_on_unread(base, ["toy0", "toy1", "toy2", "toy3"]) or "").startswith("6 files")
    (base / "toy3").unlink()
    with pytest.warns(UserWarning, match="5 files below .* are not read"):
        import_folder(base, TOY, tmp_path / "out")


def test_files_of_a_dataset_that_are_not_read_are_counted(tmp_path, roots):
    base = tmp_path / "mine"
    data_folder(base / "train", ["a", "b"])
    data_folder(base / "test", ["a", "b"])
    for name in ("train/a/x.gif", "test/b/y.heic", "notes.txt"):
        (base / name).touch()
    (base / "train/a/images").mkdir()
    Image.fromarray(BYTES[0]).save(base / "train/a/images/read.png")
    info, said = registered("mine", base, roots)
    assert info.train_count == 9
    assert f"3 files below {base} are not read: 1 .gif, 1 .heic, 1 .txt" in said


def test_folders_without_readable_images_say_what_they_hold(tmp_path, roots):
    for name in ("toy0", "toy1", "toy2"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.gif").touch()
    with pytest.raises(DataMissing, match=r"holds no images in class folders; 3 files .* are not read: 3 \.gif"):
        import_folder(tmp_path / "set", TOY, tmp_path / "out")
    with pytest.raises(BadValue, match=r"toy0 holds no image; 1 file .* is not read: 1 \.gif"):
        add_folder("mine", tmp_path / "set", roots)


def test_soft_labels_beside_class_folders_are_refused(tmp_path):
    base = set_folder(tmp_path / "set")
    torch.save(torch.rand(6, 3), base / "soft_labels.pt")
    with pytest.raises(BadValue, match=r"holds soft_labels\.pt beside its class folders.*move that file elsewhere"):
        import_folder(base, TOY, tmp_path / "out")
    (base / "soft_labels.pt").rename(tmp_path / "soft_labels.pt")
    import_folder(base, TOY, tmp_path / "out")


NUMBERS = ("00000", "00001", "00002")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "toy2\ntoy0\ntoy1\n"),
        ("class_to_idx.json", json.dumps({"toy0": 1, "toy1": 2, "toy2": 0})),
        ("class_names.json", json.dumps(["toy class 2", "toy class 0", "toy class 1"])),
    ],
)
def test_a_class_list_beside_numbered_folders_is_obeyed(tmp_path, name, text):
    base = set_folder(tmp_path / "set", NUMBERS)
    (base / name).write_text(text)
    notes = []
    import_folder(base, TOY, tmp_path / "out", say=notes.append)
    labels = np.array([2, 0, 1] * 2)
    import_tensors((BYTES, labels), TOY, tmp_path / "same")
    contents = [SyntheticSet.open(tmp_path / place).manifest.content for place in ("out", "same")]
    assert contents[0] == contents[1]
    (base / name).write_text("cat dog cow")
    with pytest.raises(ClassOrderError, match=name):
        import_folder(base, TOY, tmp_path / "no", say=notes.append)


def test_the_meaning_of_numbers_is_said(tmp_path):
    notes = []
    import_folder(set_folder(tmp_path / "set", NUMBERS), TOY, tmp_path / "out", say=notes.append)
    expected = "folders are class numbers: 00000 is toy class 0, 00001 is toy class 1, 00002 is toy class 2"
    assert expected in [note.text for note in notes]


def grey16():
    return Image.fromarray(257 * BYTES[0, :, :, 0].astype(np.uint16))


def see_through():
    image = Image.fromarray(BYTES[0]).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 0))
    return image


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DataCorrupt, "is empty"),
        (LFS.encode(), DataCorrupt, "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><title>Quota exceeded</title>" + b" " * 300, DataCorrupt, "is a web page"),
        (b"\x89PNG torn" + bytes(range(256)), DataCorrupt, "cannot be decoded"),
        (grey16, BadValue, r"more than 8 bits per channel \(mode I;16\)"),
    ],
)
def test_files_that_are_no_8_bit_images_are_one_sentence_everywhere(tmp_path, roots, content, error, message):
    base, data = set_folder(tmp_path / "set"), data_folder(tmp_path / "data", ["a", "b"])
    for path in (base / "toy1" / "0.png", data / "a" / "0.png"):
        if callable(content):
            content().save(path)
        else:
            path.write_bytes(content)
    with pytest.raises(error, match=rf"toy1/0\.png.*{message}"):
        import_folder(base, TOY, tmp_path / "out")
    # The image may be drawn for the test split, whose pixels are decoded when the dataset is opened.
    with pytest.raises(error, match=rf"a/0\.png.*{message}"):
        registered("mine", data, roots)
        open_dataset("mine", roots)


def test_transparency_is_refused_in_sets_and_said_in_datasets(tmp_path, roots):
    base, data = set_folder(tmp_path / "set"), data_folder(tmp_path / "data", ["a", "b"], count=6)
    see_through().save(base / "toy1" / "0.png")
    with pytest.raises(BadValue, match=r"toy1/0\.png has transparent pixels"):
        import_folder(base, TOY, tmp_path / "out")
    for path in data.rglob("*.png"):
        see_through().save(path)
    said = registered("mine", data, roots)[1]
    assert "10 of 10 training images have an alpha channel with transparent pixels; it is dropped" in said


@pytest.mark.parametrize(("value", "message"), [(0, "All images are black"), (1, "lost their scale")])
def test_datasets_and_sets_without_light_are_refused(tmp_path, roots, value, message):
    for base in (data_folder(tmp_path / "mine", ["a", "b"]), set_folder(tmp_path / "set")):
        for path in base.rglob("*.png"):
            Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)
    with pytest.raises(BadValue, match=message):
        registered("mine", tmp_path / "mine", roots)
    with pytest.raises(BadValue, match=message):
        import_folder(tmp_path / "set", TOY, tmp_path / "out")
    assert not roots.home.exists()


def test_the_pixel_range_of_a_dataset_is_said(tmp_path, roots):
    assert (
        "pixels of 6 training images, 5 to 255" in registered("mine", data_folder(tmp_path / "m", ["a", "b"]), roots)[1]
    )


def test_fixes_that_register_again_keep_resolution_and_place(tmp_path, roots):
    folder = data_folder(tmp_path / "my images", ["a", "b"])
    before, _said = registered("mine", folder, roots, 64)
    (folder / "a" / "3.png").unlink()
    with pytest.raises(DataCorrupt) as caught:
        open_dataset("mine", roots)
    assert follow(caught.value.fix, roots).resolution == before.resolution == 64
    open_dataset("mine", roots)


def test_the_layout_of_tiny_imagenet_is_named_and_its_fix_works(tmp_path, roots):
    base = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        data_folder(base / "train" / name, ["images"])
        (base / "train" / name / f"{name}_boxes.txt").touch()
    data_folder(base / "val", ["images"])
    (base / "val/val_annotations.txt").write_text("0.png\tn01\n")
    data_folder(base / "test", ["images"])
    with pytest.raises(BadValue, match=r"has its labels in val_annotations\.txt") as caught:
        registered("mine", base, roots, 64)
    info = follow(caught.value.fix, roots)
    assert (info.class_ids, info.train_count + info.test_count, info.resolution) == (("n01", "n02"), 8, 64)


def test_a_train_folder_without_a_test_folder_and_its_fix(tmp_path, roots):
    data_folder(tmp_path / "x/train", ["a", "b"])
    with pytest.raises(DataMissing, match="but no folder test") as caught:
        registered("mine", tmp_path / "x", roots)
    assert follow(caught.value.fix, roots).num_classes == 2


def test_another_dataset_in_parquet_files_is_registered_as_the_doctor_says(tmp_path):
    folder = tmp_path / "data/cifar10"
    folder.mkdir(parents=True)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
    rows = [{"bytes": stream.getvalue(), "path": None}] * 8
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": rows, "label": 2 * [0, 1, 2, 3]}), folder / f"{split}.parquet")
    roots = Roots(tmp_path / "data", tmp_path / "home")
    [finding] = doctor(roots, ["cifar10"])
    assert finding.state == "wrong" and "register it: rd3 data add NAME" in finding.fix
    assert follow(finding.fix.replace("NAME", "mine"), roots).num_classes == 4


def test_unlike_class_folders_of_train_and_test(tmp_path, roots):
    data_folder(tmp_path / "x/train", ["a", "b"])
    data_folder(tmp_path / "x/test", ["a", "c"])
    with pytest.raises(ClassOrderError, match=r"Fix: rename .*/x/test/c to b, if they are one class"):
        registered("mine", tmp_path / "x", roots)
    (tmp_path / "x/test/c").rename(tmp_path / "x/test/b")
    assert registered("mine", tmp_path / "x", roots)[0].class_ids == ("a", "b")


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("way", ["move", "remove"])
def test_a_class_without_images_in_one_split_has_a_way_out_that_works(empty, part, way, tmp_path, roots):
    base, other = tmp_path / "x", {"train": "test", "test": "train"}[part]
    for split in ("train", "test"):
        data_folder(base / split, ["0", "90", "180"])
    shutil.rmtree(base / part / "180")
    if empty:
        (base / part / "180").mkdir()
    with pytest.raises((BadValue, ClassOrderError), match="180") as caught:
        registered("mine", base, roots)
    assert caught.value.fix.startswith("move some ") and "or remove" in caught.value.fix
    (base / part / "180").mkdir(exist_ok=True)
    if way == "move":
        for number in range(2):
            shutil.move(base / other / "180" / f"{number}.png", base / part / "180")
    else:
        shutil.rmtree(base / other / "180")
        shutil.rmtree(base / part / "180")
    assert registered("mine", base, roots)[0].class_ids == (("0", "90", "180") if way == "move" else ("0", "90"))


def test_a_class_with_too_few_images_to_move_any(tmp_path, roots):
    for part, count in (("train", 2), ("test", 1)):
        data_folder(tmp_path / "x" / part, ["a", "b"], count)
    (tmp_path / "x/test/b/0.png").rename(tmp_path / "x/test/b/0.heic")
    with pytest.raises(BadValue, match=r"b has 0 test images, .*; 1 file .* 1 \.heic\. .*add test images"):
        registered("mine", tmp_path / "x", roots)


def test_test_images_that_are_training_images_are_counted(tmp_path, roots):
    folder = tmp_path / "leaky"
    for part, seeds in (("train", range(4)), ("test", range(2, 6))):
        for label in range(2):
            (folder / part / f"c{label}").mkdir(parents=True)
            for seed in seeds:
                # the last test image is of one colour, so that no training file has its size
                pixels = np.random.default_rng([label, seed]).integers(0, 256, (16, 16, 3), dtype=np.uint8) * (seed < 5)
                Image.fromarray(pixels).save(folder / part / f"c{label}" / f"{part}{seed}.png")
    _info, said = registered("leaky", folder, roots)
    assert "4 of 8 test images compared are also among the training images" in said
    info = dataset_info("digits").model_copy(update={"class_ids": ("c0", "c1")})
    test, train = (FolderRecords.scan(folder / part, info) for part in ("test", "train"))
    assert test.copies_in(train, 3)[1] == 4, "the fourth, of another size, needs no reading; the fifth would"
    for label in range(2):
        for seed in (2, 3):
            (folder / "test" / f"c{label}" / f"test{seed}.png").unlink()
    assert "among the training images" not in registered("clean", folder, roots)[1]


CAFE, COMPOSED = "cafe\u0301", "caf\u00e9"


@pytest.mark.parametrize("names", [(CAFE, "zebra"), (COMPOSED, "zebra "), (f"{CAFE} ", "Zebra")])
def test_spellings_of_one_class_name_are_the_same_class(names, tmp_path, roots):
    data_folder(tmp_path / "x/train", [COMPOSED, "zebra"])
    data_folder(tmp_path / "x/test", names)
    info, said = registered("mine", tmp_path / "x", roots)
    assert info.class_ids == (COMPOSED, "zebra") and "not read" not in said
    opened = open_dataset("mine", roots)
    darkest = opened.images("test", range(8)).amin((1, 2, 3)).tolist()
    assert list(zip(opened.labels("test").tolist(), darkest, strict=True)) == [(0, 5)] * 4 + [(1, 25)] * 4


def test_the_order_of_classes_does_not_depend_on_how_characters_are_composed(tmp_path, roots):
    for place, names in (("a", ["cafz", COMPOSED]), ("b", ["cafz", CAFE])):
        data_folder(tmp_path / place, names)
    ids = [registered(place, tmp_path / place, roots)[0].class_ids for place in "ab"]
    assert ids == [("cafz", COMPOSED)] * 2
    labels = [open_dataset(place, roots).labels("train").tolist() for place in "ab"]
    assert labels[0] == labels[1]


def test_letters_in_both_cases_stay_different_classes(tmp_path, roots):
    for part in ("train", "test"):
        data_folder(tmp_path / "x" / part, ["A", "a", "b"])
    assert registered("mine", tmp_path / "x", roots)[0].class_ids == ("A", "a", "b")
    opened = open_dataset("mine", roots)
    assert opened.images("test", range(12)).amin((1, 2, 3)).tolist() == [5] * 4 + [25] * 4 + [45] * 4


def test_names_that_differ_in_spaces_alone_are_refused_and_the_fix_works(tmp_path, roots):
    data_folder(tmp_path / "x", ["cat", "cat ", "dog"])
    with pytest.raises(BadValue, match="'cat' and 'cat '") as caught:
        registered("mine", tmp_path / "x", roots)
    assert "rename one" in caught.value.fix
    (tmp_path / "x/cat ").rename(tmp_path / "x/cow")
    assert registered("mine", tmp_path / "x", roots)[0].num_classes == 3


@pytest.mark.parametrize(
    "parts", [("Training", "Testing"), ("training", "validation"), ("TRAIN", "Test"), ("Train", "Valid")]
)
def test_other_names_of_the_splits_are_read(parts, tmp_path, roots):
    for part, count in zip(parts, (4, 3), strict=True):
        data_folder(tmp_path / "x" / part, ["a", "b"], count)
    info, said = registered("mine", tmp_path / "x", roots)
    assert (info.class_ids, info.train_count, info.test_count) == (("a", "b"), 8, 6) and "not read" not in said
    assert len(open_dataset("mine", roots).labels("test")) == 6


def test_folders_that_look_like_splits_are_no_classes_and_the_fix_works(tmp_path, roots):
    for part in ("seg_train", "seg_test", "seg_val"):
        data_folder(tmp_path / "x" / part, ["a", "b"])
    with pytest.raises(BadValue, match="seg_test, seg_train, seg_val, which look like splits") as caught:
        registered("mine", tmp_path / "x", roots)
    assert follow(caught.value.fix, roots).class_ids == ("a", "b")


@pytest.mark.parametrize("wrapper", ["data", "data/PetImages"])
def test_folders_one_level_too_deep_are_said_and_the_fix_works(wrapper, tmp_path, roots):
    base = tmp_path / "my download"
    data_folder(base / wrapper, ["a", "b"])
    (base / "__MACOSX").mkdir()
    with pytest.raises(BadValue, match=f"are a level deeper, in {base / wrapper}") as caught:
        registered("mine", base, roots)
    assert follow(caught.value.fix, roots).class_ids == ("a", "b")
    (base / "labels").mkdir()
    with pytest.raises(BadValue, match=f"holds no image|{base / wrapper}"):
        registered("mine", base, roots)
    with pytest.raises(BadValue, match=r"has 0 class folders.*it holds images itself") as caught:
        registered("mine", base / wrapper / "a", roots)
    assert follow(caught.value.fix, roots).class_ids == ("a", "b")


def test_splits_one_level_too_deep_are_said(tmp_path, roots):
    for part in ("train", "test"):
        data_folder(tmp_path / "x" / part / part, ["a", "b"])
    inner = tmp_path / "x/train/train"
    with pytest.raises(BadValue, match=f"are a level deeper, in {inner}") as caught:
        registered("mine", tmp_path / "x", roots)
    assert caught.value.fix == f"move what is in {inner} to {inner.parent}"


def litter(*folders):
    for folder in folders:
        (folder / "__MACOSX" / "toy0").mkdir(parents=True)
        (folder / "@eaDir").mkdir()
        for name in (
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            "__MACOSX/toy0/._0.png",
            "__MACOSX/0.png",
            "._0.png",
            "._soft_labels.pt",
        ):
            (folder / name).write_bytes(b"\x00\x05\x16\x07")


def test_what_file_managers_leave_behind_is_ignored(tmp_path, roots):
    base, data = set_folder(tmp_path / "set"), tmp_path / "data"
    for part in ("train", "test"):
        data_folder(data / part, ["a", "b"])
    litter(base, base / "toy1", data, data / "train", data / "test", data / "train/a")
    notes = []
    import_folder(base, TOY, tmp_path / "out", say=notes.append)
    info, said = registered("mine", data, roots)
    assert (info.class_ids, info.train_count, info.test_count) == (("a", "b"), 8, 8)
    assert "not read" not in said + " ".join(note.text for note in notes)


def test_a_wrapper_around_the_class_folders_of_a_set_is_read_and_said(tmp_path):
    notes = []
    set_folder(tmp_path / "set/train", ("Toy0 ", "toy1", "TOY2"))
    litter(tmp_path / "set")
    recipe = import_folder(tmp_path / "set", TOY, tmp_path / "out", say=notes.append)
    assert recipe.content == import_folder(set_folder(tmp_path / "plain"), TOY, tmp_path / "plain-out").content
    assert f"class folders are read from {tmp_path / 'set/train'}" in [note.text for note in notes]
    set_folder(tmp_path / "set/val")
    with pytest.raises(BadValue, match=r"train is not a class of toy.*import one of these folders") as caught:
        import_folder(tmp_path / "set", TOY, tmp_path / "no")
    inner = shlex.split(caught.value.fix.partition(": ")[2])[0].rstrip(",")
    assert import_folder(type(tmp_path)(inner), TOY, tmp_path / "again") == recipe


def _turned(path, orientation=6):
    """A red image with a blue left edge, which EXIF says is turned."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :6] = 200, (0, 0, 200)
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def test_turned_images_are_read_as_torchvision_reads_them_and_said(tmp_path, roots):
    from torchvision.datasets import ImageFolder

    data_folder(tmp_path / "d" / "train", ("cat", "dog"), side=32)
    data_folder(tmp_path / "d" / "test", ("cat", "dog"), side=32)
    _turned(tmp_path / "d/train/cat/0.png")
    _info, said = registered("mine", tmp_path / "d", roots)
    assert "1 of 8 training images have an EXIF orientation" in said
    pixels = open_dataset("mine", roots).images("train", [0])[0]
    image, _label = ImageFolder(tmp_path / "d/train")[0]
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert torch.equal(pixels, torch.tensor(expected).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_turned_images_of_a_set_are_said(suffix, tmp_path):
    folder = set_folder(tmp_path / "set", suffix=suffix)
    for orientation, place in enumerate(("toy0/0", "toy1/0", "toy2/0"), start=1):  # 1 is upright
        _turned(folder / f"{place}{suffix}", orientation)
    notes = []
    import_folder(folder, TOY, tmp_path / "out", say=notes.append)
    assert next(note.text for note in notes if note.doubtful).startswith("2 images have an EXIF orientation")


def test_a_turned_tiff_is_turned_upright_by_pil_and_not_said(tmp_path):
    folder = set_folder(tmp_path / "set", suffix=".tif")
    stored = _turned(folder / "toy0/0.tif")
    notes = []
    import_folder(folder, TOY, tmp_path / "out", say=notes.append)
    assert not any("EXIF" in note.text for note in notes)
    image = SyntheticSet.open(tmp_path / "out").images[0]
    assert torch.equal(image, torch.tensor(np.rot90(stored, -1).copy()).permute(2, 0, 1))


def test_a_folder_of_shards_or_listed_images_names_what_is_in_it(tmp_path, roots):
    (tmp_path / "d").mkdir()
    for name in ("000000.tar", "000001.tar", "metadata.csv"):
        (tmp_path / "d" / name).write_bytes(b"x")
    with pytest.raises(BadValue, match=r"0 class folders.*3 files below .* are not read: 1 \.csv, 2 \.tar"):
        registered("mine", tmp_path / "d", roots)


@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_the_first_of_several_frames_is_read_as_torchvision_does_and_said(kind, tmp_path, roots):
    default_loader = pytest.importorskip("torchvision.datasets.folder").default_loader
    base, data = set_folder(tmp_path / "set"), tmp_path / "data"
    first, second = (Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (200, 40))
    (base / "toy1/0.png").unlink()
    moving = base / f"toy1/0.{kind}"
    first.save(moving, save_all=True, append_images=[second], lossless=True)
    notes = []
    import_folder(base, TOY, tmp_path / "out", say=notes.append)
    [frames] = [note for note in notes if "frames" in note.text]
    assert frames.doubtful and frames.text.startswith("1 images have several frames or pages, of which one is read")
    opened = SyntheticSet.open(tmp_path / "out")
    assert torch.equal(opened.images[1], torch.tensor(np.asarray(default_loader(str(moving)))).permute(2, 0, 1))
    for part in ("train", "test"):
        data_folder(data / part, ["a", "b"])
    (data / "train/a/3.png").unlink()
    moving.rename(data / f"train/a/moving.{kind}")
    assert "1 of 8 training images have several frames" in registered("mine", data, roots)[1]


def test_a_picture_whose_file_is_closed_is_read(tmp_path):
    first, second = (Image.new("L", (8, 8), value) for value in (0, 200))
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    with Image.open(tmp_path / "two.tif") as image:
        image.load()
    pixels, _found = rgb_of(image, "the picture")
    assert pixels.shape == (8, 8, 3) and not pixels.any()


def test_the_previews_in_a_cameras_file_are_no_frames(tmp_path):
    base = set_folder(tmp_path / "set")
    (base / "toy1/0.png").unlink()
    picture = Image.fromarray(BYTES[1])
    picture.save(base / "toy1/0.jpg", "MPO", save_all=True, append_images=[picture.resize((8, 8))])
    notes = []
    import_folder(base, TOY, tmp_path / "out", say=notes.append)
    assert not any("frames" in note.text for note in notes)


def test_a_class_that_is_a_link_to_nowhere_is_not_dropped(tmp_path, roots):
    base, data = set_folder(tmp_path / "set", ("toy0", "toy1", "toy2")), data_folder(tmp_path / "data", ["a", "b", "c"])
    for folder, name in ((base, "toy2"), (data, "c")):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    import_folder(base, TOY, tmp_path / "out")
    assert registered("mine", data, roots)[0].class_ids == ("a", "b", "c")
    for name in ("toy2", "c"):
        (tmp_path / name).rename(tmp_path / f"gone {name}")
    with pytest.raises(DataMissing, match=rf"{base}/toy2 is a link to {tmp_path}/toy2, which is missing"):
        import_folder(base, TOY, tmp_path / "out2")
    with pytest.raises(DataMissing, match=rf"{data}/c is a link to {tmp_path}/c, which is missing"):
        registered("mine", data, roots)
    (data / "c").unlink()
    assert registered("mine", data, roots)[0].class_ids == ("a", "b")


def test_images_beside_a_list_of_their_labels_are_not_sent_in_a_circle(tmp_path, roots):
    """Kaggle's CIFAR-10: ``train/1.png`` ... and ``trainLabels.csv``."""
    for part in ("train", "test"):
        set_folder(tmp_path / "kaggle", (part,) * 3)
    for name in ("sampleSubmission.csv", "trainLabels.csv"):
        (tmp_path / "kaggle" / name).write_text("id,label\n1,frog\n")
    for folder in ("kaggle", "kaggle/train"):
        with pytest.raises(BadValue, match="train has 0 class folders") as refused:
            registered("mine", tmp_path / folder, roots)
        assert "rd3 data add" not in refused.value.fix
        assert refused.value.fix.startswith("move every image into a folder that is named by its class")
        assert str(tmp_path / "kaggle/trainLabels.csv") in refused.value.fix
    with pytest.raises(DataMissing, match="no images in class folders") as refused:
        import_folder(tmp_path / "kaggle/train", TOY, tmp_path / "out")
    assert "trainLabels.csv may say which that is" in refused.value.fix


def test_images_in_one_folder_with_an_array_of_their_labels(tmp_path):
    """As Oxford Flowers has them."""
    set_folder(tmp_path / "set", ("all",) * 3)
    (tmp_path / "set" / "all" / "imagelabels.mat").touch()
    with pytest.raises(DataMissing, match="no images in class folders") as refused:
        import_folder(tmp_path / "set" / "all", TOY, tmp_path / "out")
    assert "imagelabels.mat may say which that is" in refused.value.fix


def test_names_that_are_paths_of_windows_are_said_and_unzip_makes_folders_of_them(tmp_path, roots):
    """Python's zipfile leaves the names in an archive by PowerShell 5 as they are (python/cpython#91036)."""
    source = data_folder(tmp_path / "source", ["cat", "dog"])
    archive = tmp_path / "sent.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(source.rglob("*.png")):
            entry = zipfile.ZipInfo(str(path.relative_to(source)).replace("/", "\\"))
            entry.create_system = 0  # as PowerShell
            file.writestr(entry, path.read_bytes())
    (tmp_path / "beside").mkdir()
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "taken")
    with pytest.raises(BadValue, match="taken has 0 class folders") as refused:
        registered("mine", tmp_path / "taken", roots)
    assert re.fullmatch(r"unpack the archive again with `unzip`, .* of cat\\\S+png, a path .*", refused.value.fix)
    with pytest.raises(DataMissing, match="no images in class folders") as other:
        import_folder(tmp_path / "taken", TOY, tmp_path / "out")
    assert other.value.fix == refused.value.fix
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-q", archive, "-d", tmp_path / "again"], capture_output=True).returncode < 2
        assert registered("mine", tmp_path / "again", roots)[0].class_ids == ("cat", "dog")


def test_a_folder_of_images_is_not_sure_to_be_one_class_of_the_folder_above(tmp_path, roots):
    base = data_folder(tmp_path / "home", ["flowers", "other"])
    with pytest.raises(BadValue, match="it holds images itself") as refused:
        registered("mine", base / "flowers", roots)
    assert re.fullmatch(
        "move every image into a folder that is named by its class, or, if it is one class of several, register "
        rf"the folder above: rd3 data add mine --folder {base} .*",
        refused.value.fix,
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [("data-00000-of-00001.arrow", "save_to_disk"), ("000000.tar", "WebDataset"), ("train.h5", "HDF5")],
)
def test_files_that_hold_many_images_are_named_with_the_way_out(name, what, tmp_path, roots):
    for part in ("train", "test"):
        (tmp_path / "d" / part).mkdir(parents=True)
        (tmp_path / "d" / part / name).write_bytes(b"x")
        (tmp_path / "d" / part / "state.json").write_text("{}")
    fix = rf"save each image as <class>/<number>\.png; they are in .*{what}"
    with pytest.raises(BadValue, match=fix):
        registered("mine", tmp_path / "d", roots)
    with pytest.raises(DataMissing, match=fix):
        import_folder(tmp_path / "d/train", TOY, tmp_path / "out")
    data_folder(tmp_path / "d/train", ["a", "b"])  # as unpacked beside its archive
    data_folder(tmp_path / "d/test", ["a", "b"])
    assert registered("mine", tmp_path / "d", roots)[0].class_ids == ("a", "b")


def test_a_pipe_among_the_images_is_refused_and_not_waited_for(tmp_path, roots):
    base, data = set_folder(tmp_path / "set"), data_folder(tmp_path / "data", ["a", "b"])
    for folder in (base / "toy1", data / "b"):
        os.mkfifo(folder / "9.png")
    for read in (lambda: import_folder(base, TOY, tmp_path / "out"), lambda: registered("mine", data, roots)):
        with pytest.raises(BadValue, match=r"9\.png is not a regular file but a pipe"):
            read()


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes UTF-8 only")
def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path, roots):
    base, data = set_folder(tmp_path / "set"), data_folder(tmp_path / "data", ["a", "b"])
    for folder in (base, data):
        (folder / os.fsdecode(b"caf\xe9")).mkdir()
    for read in (lambda: import_folder(base, TOY, tmp_path / "out"), lambda: registered("mine", data, roots)):
        with pytest.raises(BadValue, match=r"folder .*/caf\ufffd is not UTF-8"):
            read()


def test_a_third_split_is_said_to_be_unused(tmp_path, roots):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        data_folder(tmp_path / "d" / part, ["a", "b"], count)
    info, said = registered("mine", tmp_path / "d", roots)
    assert info.test_count == 6
    assert "val (4 images) is not used: test is the test split" in said and "not read" not in said


def test_a_test_folder_without_labels_beside_a_labelled_one(tmp_path, roots):
    for part in ("train", "val"):
        data_folder(tmp_path / "d" / part, ["a", "b"], 3)
    (tmp_path / "d" / "test").mkdir()
    Image.fromarray(BYTES[0]).save(tmp_path / "d" / "test" / "1.png")
    with pytest.raises(BadValue, match=r"test has 0 class folders") as caught:
        registered("mine", tmp_path / "d", roots)
    assert caught.value.fix.endswith("or rename or remove the split test: then val is the test split")
    (tmp_path / "d" / "test").rename(tmp_path / "unlabelled")
    assert registered("mine", tmp_path / "d", roots)[0].test_count == 6
