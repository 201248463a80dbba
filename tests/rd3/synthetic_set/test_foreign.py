"""Sets that come from elsewhere and go elsewhere."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rd3.errors import BadValue, DataCorrupt, DataMissing, StoreError
from rd3.inputs.notes import Note
from rd3.recipe import Normalisation
from rd3.store import Entry, FolderStore, sha256_file
from rd3.synthetic_set import SyntheticSet, export_parquet, export_png, import_folder, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
INFO = TOY.info
IMAGES = TOY.images("train", range(12))
LABELS = torch.arange(12) % 3


def _import(source, out, **options):
    return import_tensors(source, TOY, out, **options)


@pytest.mark.parametrize(
    ("name", "soft"),
    [
        *((name, True) for name in ("soft_labels.pt", "SoftLabels.npy", "soft.npz", "train-logits.pth", "fkd_0.tar")),
        *((name, True) for name in ("probs.npy", "soft_targets", "probabilities.csv", "relabel.pkl", "x_soft.npy.gz")),
        *((name, False) for name in ("microsoft.txt", "problems.txt", "problems.csv", "software.json", "probe.pt")),
        *((name, False) for name in ("soft-labels.md", "microsoft.pt", "LICENSE")),
    ],
)
def test_files_of_soft_labels_beside_class_folders_are_refused_and_no_others(tmp_path, name, soft):
    for label, class_id in enumerate(INFO.class_ids):
        (tmp_path / "set" / class_id).mkdir(parents=True)
        Image.fromarray(IMAGES[label].permute(1, 2, 0).numpy()).save(tmp_path / "set" / class_id / "0.png")
    (tmp_path / "set" / name).write_text("any")
    if soft:
        with pytest.raises(BadValue, match=f"holds {name} beside its class folders"):
            import_folder(tmp_path / "set", TOY, tmp_path / "out")
    else:
        assert import_folder(tmp_path / "set", TOY, tmp_path / "out", say=lambda _note: None).ipc == 1


def test_rows_are_sorted_k_major_and_the_key_follows_content(tmp_path):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    recipe = _import((IMAGES[order], LABELS[order]), tmp_path / "a")
    opened = SyntheticSet.open(tmp_path / "a", class_ids=INFO.class_ids)
    manifest = opened.manifest
    assert opened.labels.tolist() == LABELS.tolist() and manifest.key == recipe.key
    assert (recipe.method, recipe.ipc, recipe.data.split, recipe.set_seed) == ("imported", 4, "unknown", None)
    assert recipe.content == manifest.content
    for label in range(3):
        given, kept = IMAGES[order][LABELS[order] == label], opened.images[opened.labels == label]
        assert torch.equal(given, kept)
    again = _import((opened.images, opened.labels), tmp_path / "b")
    assert again.key == recipe.key
    other = _import((255 - opened.images, opened.labels), tmp_path / "c")
    assert other.key != recipe.key


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pair"])
def test_files_of_tensors(tmp_path, suffix):
    path = tmp_path / f"set.{suffix.replace('pair', 'pt')}"
    if suffix == "safetensors":
        save_file({"images": IMAGES, "labels": LABELS}, path)
    else:
        torch.save((IMAGES, LABELS) if suffix == "pair" else {"images": IMAGES, "labels": LABELS}, path)
    recipe = _import(path, tmp_path / "out")
    assert recipe == _import((IMAGES, LABELS), tmp_path / "memory")


def test_one_of_the_sets_of_dataset_condensation(tmp_path):
    """``torch.save({"data": data_save, "accs_all_exps": ...})`` of VICO-UoE/DatasetCondensation ``main.py``."""
    pairs = [[IMAGES, LABELS], [255 - IMAGES, LABELS]]
    accuracies = {"ConvNet": [np.float64(0.5), 0.6]}
    path, single = tmp_path / "res_DC_toy_ConvNet_4ipc.pt", tmp_path / "single.pt"
    torch.save({"data": pairs, "accs_all_exps": accuracies}, path)
    torch.save({"data": pairs[:1], "accs_all_exps": accuracies}, single)
    keys = [_import((images, LABELS), tmp_path / "memory").key for images, _labels in pairs]
    for number, key in enumerate(keys):
        notes: list[Note] = []
        assert _import(path, tmp_path / str(number), number=number, say=notes.append).key == key
        assert "not read from res_DC_toy_ConvNet_4ipc.pt: accs_all_exps" in {note.text for note in notes}
    assert _import(single, tmp_path / "single", say=lambda note: None).key == keys[0]
    with pytest.raises(BadValue, match="holds 2 sets, one for each repetition") as caught:
        _import(path, tmp_path / "no")
    assert "--number 0 to 1" in caught.value.fix
    for number in (2, -1):
        with pytest.raises(BadValue, match=f"holds 2 set.*got number {number}"):
            _import(path, tmp_path / "no", number=number)
    torch.save((IMAGES, LABELS), tmp_path / "pair.pt")
    for source in (tmp_path / "pair.pt", (IMAGES, LABELS)):
        with pytest.raises(BadValue, match=r"one set|several sets"):
            _import(source, tmp_path / "no", number=0)


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "npy"])
def test_images_and_labels_in_a_file_each(tmp_path, suffix):
    paths = tmp_path / f"images_best.{suffix}", tmp_path / f"labels_best.{suffix}"
    for path, tensor in zip(paths, (IMAGES, LABELS), strict=True):
        if suffix == "npy":
            np.save(path, tensor.numpy())
        else:
            save_file({"data": tensor}, path) if suffix == "safetensors" else torch.save(tensor, path)
    expected = _import((IMAGES, LABELS), tmp_path / "memory").key
    assert _import(paths, tmp_path / "out").key == _import(tuple(map(str, paths)), tmp_path / "text").key == expected
    if suffix == "npy":
        return
    if suffix == "pt":
        with pytest.raises(DataCorrupt, match="holds one Tensor") as caught:
            _import(paths[0], tmp_path / "no")
        assert "--labels FILE" in caught.value.fix
    with pytest.raises(BadValue, match="holds no class folders, but 2") as caught:
        import_folder(tmp_path, TOY, tmp_path / "no")
    assert caught.value.fix == f"import {paths[0]} --labels {paths[1]}"
    torch.save({"a": IMAGES, "b": LABELS}, tmp_path / "two.pt")
    with pytest.raises(DataCorrupt, match="expected one tensor of labels"):
        _import((paths[0], tmp_path / "two.pt"), tmp_path / "no")
    torch.save(_Trap(), tmp_path / "bad.pt")
    with pytest.raises(DataCorrupt, match="calls exec when unpickled"):
        _import((paths[0], tmp_path / "bad.pt"), tmp_path / "no")


class _Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"images": _Trap(), "labels": LABELS}, tmp_path / "bad.pt")
    with pytest.raises(DataCorrupt, match="calls exec when unpickled"):
        _import(tmp_path / "bad.pt", tmp_path / "out")


def test_files_that_are_no_sets(tmp_path):
    with pytest.raises(DataMissing, match="There is no file"):
        _import(tmp_path / "none.pt", tmp_path / "out")
    save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "whole.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-20])
    with pytest.raises(DataCorrupt, match=r"torn\.safetensors is damaged"):
        _import(tmp_path / "torn.safetensors", tmp_path / "out")
    save_file({"x": IMAGES}, tmp_path / "x.safetensors")
    with pytest.raises(BadValue, match="holds x, expected tensors 'images' and 'labels'"):
        _import(tmp_path / "x.safetensors", tmp_path / "out")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(BadValue, match=r"ends in '\.npy'"):
        _import(tmp_path / "x.npy", tmp_path / "out")
    torch.save({0: IMAGES, 1: LABELS}, tmp_path / "numbered.pt")
    with pytest.raises(BadValue, match="holds 0, 1, expected tensors 'images' and 'labels'"):
        _import(tmp_path / "numbered.pt", tmp_path / "out")


def test_files_that_are_no_arrays_by_their_names(tmp_path):
    save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "set.npz")
    with pytest.raises(BadValue, match=r"set\.npz holds no plain array\. Fix: save"):
        _import(tmp_path / "set.npz", tmp_path / "out")
    np.save(tmp_path / "objects.npy", np.array([None]))
    with pytest.raises(BadValue, match=r"objects\.npy holds no plain array\. Fix: save"):
        _import((tmp_path / "objects.npy", tmp_path / "objects.npy"), tmp_path / "out")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, images=IMAGES.numpy(), labels=LABELS.numpy())
    with pytest.raises(BadValue, match=r"archive\.npy is an archive of images, labels, expected one array"):
        _import((tmp_path / "archive.npy", tmp_path / "archive.npy"), tmp_path / "out")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_that_are_called_archives(tmp_path, zipped):
    path = tmp_path / "data40.pth.tar"
    torch.save((IMAGES, LABELS), path, _use_new_zipfile_serialization=zipped)
    assert _import(path, tmp_path / "out") == _import((IMAGES, LABELS), tmp_path / "memory")
    torch.save([LABELS] * 6, path, _use_new_zipfile_serialization=zipped)  # FKD's batch_0.tar
    with pytest.raises(BadValue, match=r"data40\.pth\.tar holds a list of 6, expected 'images' and 'labels'"):
        _import(path, tmp_path / "no")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "out", "set")
    with pytest.raises(BadValue, match=r"ends in '\.tar'.*Fix: unpack it"):
        _import(path, tmp_path / "no")


def test_float_ranges(tmp_path):
    plain = IMAGES.float() / 255
    _import((plain, LABELS), tmp_path / "float")
    kept = SyntheticSet.open(tmp_path / "float")
    assert kept.manifest.dtype == "float32" and torch.equal(kept.images, plain)
    constants = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (constants.mean, constants.std))
    normalised = (plain - mean) / std
    _import((normalised, LABELS), tmp_path / "back", normalised=constants)
    torch.testing.assert_close(SyntheticSet.open(tmp_path / "back").images, plain)
    with pytest.raises(BadValue, match=r"expected \[0, 1\], and no known normalisation has these limits"):
        _import((normalised, LABELS), tmp_path / "no")
    with pytest.raises(BadValue, match="Fix: divide by 255"):
        _import((IMAGES.float(), LABELS), tmp_path / "no")
    with pytest.raises(BadValue, match="give the mean and std"):
        _import((normalised * 2, LABELS), tmp_path / "no", normalised=constants)
    with pytest.raises(BadValue, match="not finite"):
        _import((plain / 0, LABELS), tmp_path / "no")
    with pytest.raises(BadValue, match="declared as normalised"):
        _import((IMAGES, LABELS), tmp_path / "no", normalised=constants)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS + 1, r"Row 2 has label 3, toy has labels 0 to 2"),
        (IMAGES, LABELS + 0.5, "labels are torch.float32, expected whole class numbers"),
        (IMAGES, LABELS[:5], r"expected \(12,\) integers"),
        (IMAGES[:11], LABELS[:11], r"Class 2 \(toy2\) has 3 images, most classes have 4"),
        (IMAGES[..., :8], LABELS, r"needs \(N, 3, 16, 16\)"),
        (IMAGES.int() * 257, LABELS, "int32 images range from .* to .*, expected 0 to 255"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, images, labels, message):
    with pytest.raises(BadValue, match=message):
        _import((images, labels), tmp_path / "out")


@pytest.mark.parametrize("naming", ["class_ids", "class_names", "{:05d}", "new{:03d}", "new{:05d}"])
def test_folders_by_id_name_or_number(tmp_path, naming):
    names = [naming.format(label) for label in range(3)] if "{" in naming else getattr(INFO, naming)
    for row, image in enumerate(IMAGES):
        path = tmp_path / "images" / names[row % 3] / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "images" / names[0] / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match=r"1 file below .* is not read: 1 \.txt"):
        recipe = import_folder(tmp_path / "images", TOY, tmp_path / "set", split="train")
    assert recipe.content == _import((IMAGES, LABELS), tmp_path / "same").content
    assert recipe.data.split == "train"


def test_folders_that_do_not_fit(tmp_path):
    def bring(folder):
        return import_folder(folder, TOY, tmp_path / "set")

    with pytest.raises(DataMissing, match="There is no folder"):
        bring(tmp_path / "none")
    (tmp_path / "a" / "toy0").mkdir(parents=True)
    with pytest.raises(DataMissing, match="holds no images"):
        bring(tmp_path / "a")
    (tmp_path / "a" / "toy0" / "x.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(DataCorrupt, match=r"x\.png cannot be decoded"):
        bring(tmp_path / "a")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a" / "toy0" / "x.png")
    with pytest.raises(
        DataCorrupt, match=r"x\.png cannot be decoded: it has more than 178,956,970 pixels\. Fix: resize"
    ):
        bring(tmp_path / "a")
    Image.new("RGB", (20, 16)).save(tmp_path / "a" / "toy0" / "x.png")
    with pytest.raises(BadValue, match=r"x\.png is 20x16 pixels, this dataset has 16x16"):
        bring(tmp_path / "a")
    (tmp_path / "a" / "cat").mkdir()
    with pytest.raises(BadValue, match="cat is not a class of toy"):
        bring(tmp_path / "a")


@pytest.fixture
def opened(tmp_path):
    _import((IMAGES, LABELS), tmp_path / "set")
    return SyntheticSet.open(tmp_path / "set")


def test_png_there_and_back(opened, tmp_path):
    export_png(opened, tmp_path / "png")
    recipe = import_folder(tmp_path / "png", TOY, tmp_path / "back")
    assert recipe.content == opened.manifest.content
    with pytest.raises(BadValue, match="is not empty"):
        export_png(opened, tmp_path / "png")
    (tmp_path / "file").touch()
    with pytest.raises(BadValue, match="file is a file, expected a folder"):
        export_png(opened, tmp_path / "file")


def test_parquet_opens_with_the_datasets_library(opened, tmp_path, monkeypatch):
    path = export_parquet(opened, tmp_path / "set.parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(found.features["image"], datasets.Image)
    assert found.features["label"] == datasets.ClassLabel(names=list(INFO.class_ids))
    assert found["label"][:] == opened.labels.tolist()
    for row, image in enumerate(found["image"][:]):
        assert np.array_equal(np.asarray(image), opened.images[row].permute(1, 2, 0).numpy())


def test_float_sets_are_rounded_when_exported(tmp_path):
    pixels = torch.full((3, 3, 16, 16), 0.4999)
    pixels[..., 0] = 0
    _import((pixels, torch.arange(3)), tmp_path / "set")
    export_png(SyntheticSet.open(tmp_path / "set"), tmp_path / "png")
    assert np.asarray(Image.open(tmp_path / "png" / "toy0" / "00000.png")).max() == 127


def test_objects_beside_the_tensors_are_said_and_in_their_place_are_refused(tmp_path):
    torch.save({"images": IMAGES, "labels": LABELS, "args": argparse.Namespace(ipc=4)}, tmp_path / "args.pt")
    with pytest.warns(UserWarning, match=r"not read from args\.pt: args"):
        assert (
            _import(tmp_path / "args.pt", tmp_path / "a").content == _import((IMAGES, LABELS), tmp_path / "b").content
        )
    torch.save({"images": IMAGES.numpy(), "labels": LABELS}, tmp_path / "numpy.pt")
    with pytest.raises(BadValue, match=r"'images' in numpy\.pt is a pickled \S*_reconstruct, not a tensor"):
        _import(tmp_path / "numpy.pt", tmp_path / "c")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 16 KiB."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_exports_to_a_full_disk_leave_nothing_and_can_be_repeated(opened, small_disk, tmp_path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"1" * 2**14)
    for export in (lambda: export_png(opened, small_disk / "png"), lambda: export_parquet(opened, small_disk / "p")):
        with pytest.raises(StoreError, match=rf"Cannot write to {small_disk}/p(ng)?: No space left on device"):
            export()
        assert list(small_disk.iterdir()) == [ballast]
    store = FolderStore(small_disk / "store")
    held = {path.name: sha256_file(path) for path in (tmp_path / "set").iterdir() if path.is_file()}
    entry = Entry(kind="set", key=opened.manifest.key, recipe={"kind": "set"}, result={}, files=held)
    with pytest.raises(StoreError, match=rf"Cannot write to {small_disk}/store: No space left on device"):
        store.put(entry, tmp_path / "set")
    assert not [path for path in (small_disk / "store").rglob("*") if path.is_file()]
    shutil.rmtree(small_disk / "store")
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert len(list(export_png(opened, small_disk / "png").glob("*/*.png"))) == len(opened.images)


def test_an_empty_folder_gets_the_export_and_stays(opened, tmp_path, monkeypatch):
    """It may be a mount point, or the folder that the shell is in."""
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o2775)
    folder.chmod(0o2775)
    before = folder.stat()
    monkeypatch.chdir(folder)
    export_png(opened, Path())
    assert {path.name for path in folder.iterdir()} == {path.name for path in Path().iterdir()} == set(INFO.class_ids)
    assert (folder.stat().st_ino, folder.stat().st_mode) == (before.st_ino, before.st_mode)


def test_sets_without_some_classes_are_said_to_be_so(tmp_path):
    with pytest.raises(BadValue, match=r"All images are of class 1 \(toy1\); 2 have none"):
        _import((IMAGES[:2], torch.ones(2, dtype=torch.int64)), tmp_path / "one")
    with pytest.raises(BadValue, match=r"Class 0 \(toy0\) has 0 images"):
        _import((IMAGES[:4], torch.tensor([1, 2, 1, 2])), tmp_path / "two")


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("X", "y"), ("image_syn", "label_syn"), ("img", "targets")]
)
@pytest.mark.parametrize("suffix", ["npz", "pt", "safetensors"])
def test_common_names_of_images_and_labels(tmp_path, suffix, images, labels):
    path, tensors = tmp_path / f"set.{suffix}", {images: IMAGES, labels: LABELS}
    if suffix == "npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    notes: list[Note] = []
    assert _import(path, tmp_path / "out", say=notes.append).key == _import((IMAGES, LABELS), tmp_path / "memory").key
    said = {note.text for note in notes}
    assert (f"images are read from set.{suffix}, field '{images}'" in said) is (images != "images")
    assert (f"labels are read from set.{suffix}, field '{labels}'" in said) is (labels != "labels")


def test_what_else_an_npz_file_states(tmp_path):
    order = list(INFO.class_ids)[::-1]
    soft = (torch.nn.functional.one_hot(LABELS, 3) * 0.75 + 0.125).half().numpy()
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=2 - LABELS, class_names=np.array(order), lr=np.float64(0.1))
    notes: list[Note] = []
    expected = _import((IMAGES, LABELS), tmp_path / "memory").key
    assert _import(tmp_path / "a.npz", tmp_path / "a", say=notes.append).key == expected
    assert "not read from a.npz: lr" in {note.text for note in notes}
    np.savez(tmp_path / "b.npz", images=IMAGES, labels=LABELS, soft_labels=soft, soft_label_kind="logits")
    recipe = _import(tmp_path / "b.npz", tmp_path / "b", say=notes.append)
    opened = SyntheticSet.open(tmp_path / "b")
    assert (recipe.soft_label_kind, opened.soft_labels.dtype) == ("logits", "float16")
    objects = np.array([object()], dtype=object)
    swapped = {"images": IMAGES.numpy().astype(">f4") / 255, "labels": LABELS.numpy().astype(">i8")}
    np.savez(tmp_path / "big.npz", **swapped, args=objects, lr=np.longdouble(1))
    expected = _import((swapped["images"].astype(np.float32), LABELS), tmp_path / "floats").key
    assert _import(tmp_path / "big.npz", tmp_path / "big", say=notes.append).key == expected
    assert "not read from big.npz, as they are pickled objects: args" in {note.text for note in notes}
    np.savez(tmp_path / "objects.npz", images=objects, labels=np.array([0]))
    with pytest.raises(BadValue, match=r"objects\.npz holds labels, expected tensors 'images'"):
        _import(tmp_path / "objects.npz", tmp_path / "no", say=notes.append)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "A set.")
    expected = _import((IMAGES, LABELS), tmp_path / "memory").key
    assert _import(tmp_path / "a.npz", tmp_path / "again", say=notes.append).key == expected
    assert "not read from a.npz: README.txt, lr" in {note.text for note in notes}
    content = bytearray((tmp_path / "b.npz").read_bytes())
    for name in zipfile.ZipFile(tmp_path / "b.npz").infolist():  # every file in it, as by a transfer as text
        content[name.header_offset + 200] ^= 1
    (tmp_path / "damaged.npz").write_bytes(content)
    with pytest.raises(DataCorrupt, match=r"damaged\.npz is damaged: its archive cannot be read \(Bad CRC-32 for file"):
        _import(tmp_path / "damaged.npz", tmp_path / "no", say=notes.append)
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises((BadValue, DataCorrupt)):
        _import(tmp_path / "one.npz", tmp_path / "no")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    with pytest.raises(DataCorrupt, match=r"cut\.npz is damaged"):
        _import(tmp_path / "cut.npz", tmp_path / "no")
