"""Sets with soft labels of their own: on disk, opened, exported and imported again; and sets without, as before."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from rd3.errors import BadValue, ClassOrderError, DataCorrupt
from rd3.seeding import generator
from rd3.synthetic_set import SetOnDisk, SetWriter, SyntheticSet, export_parquet, export_png
from rd3.synthetic_set.block import Block
from rd3.synthetic_set.foreign import import_folder, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
IMAGES = (torch.arange(6 * 3 * 16 * 16) % 251).to(torch.uint8).reshape(6, 3, 16, 16)
LABELS = torch.tensor([2, 0, 1, 1, 2, 0])
LOGITS = 5 * torch.nn.functional.one_hot(LABELS, 3) + torch.randn(6, 3, generator=generator(0, "logits"))
VALUES = {"logits": LOGITS, "probabilities": LOGITS.softmax(1)}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def quiet(_note):
    pass


def brought(out, values=None, images=IMAGES, kind=None):
    return import_tensors(
        (images, LABELS), TOY, out, soft_labels=values, soft_label_kind=kind, say=quiet
    )  # fmt: skip


def test_a_set_without_soft_labels_is_as_before(tmp_path):
    """Digests of the version before there were any."""
    recipe = brought(tmp_path / "set")
    assert recipe.key == "2e449dd657607fe927c747778624b7261fada4e1dc8a43c38a7d1c9f2e27fb51"
    assert recipe.content == "81f5f826834e448d7e6636ca65cdb92bd7494e8d0f1284f2d8f127bf98384e35"
    block = hashlib.sha256((tmp_path / "set/blocks/00000.safetensors").read_bytes()).hexdigest()
    assert block == "ced5ec98a361229657a59b14201b44de6949df6002f9d9ea99015a41f5a7ae91"
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["recipe"]["settings"] == {} and "soft" not in json.dumps(manifest)
    assert SyntheticSet.open(tmp_path / "set").soft_labels is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", VALUES)
def test_png_there_and_back_keeps_soft_labels(kind, dtype, tmp_path):
    values = VALUES[kind].to(dtype)
    recipe = brought(tmp_path / "set", values)
    opened = SyntheticSet.open(tmp_path / "set")
    assert opened.soft_labels.kind == kind and opened.soft_labels.values.dtype == dtype
    assert torch.equal(opened.soft_labels.values.argmax(1), torch.tensor([0, 1, 2] * 2))
    export_png(opened, tmp_path / "png")
    notes = []
    assert import_folder(tmp_path / "png", TOY, tmp_path / "back", say=notes.append) == recipe
    assert not [note for note in notes if "not read" in note.text]
    again = SyntheticSet.open(tmp_path / "back").soft_labels
    assert torch.equal(again.values, opened.soft_labels.values) and again.kind == kind


def test_kind_type_and_values_are_part_of_the_key(tmp_path):
    sets = [None, LOGITS, LOGITS.half().float(), LOGITS.double(), VALUES["probabilities"]]
    recipes = [brought(tmp_path / str(place), values) for place, values in enumerate(sets)]
    recipes.append(brought(tmp_path / "stated", VALUES["probabilities"], kind="logits"))
    assert len({recipe.key for recipe in recipes}) == len({recipe.content for recipe in recipes}) == 6
    assert SetOnDisk.open(tmp_path / "1").rows([0]).shape == (1, 3, 16, 16)


def test_the_content_does_not_depend_on_blocks(tmp_path):
    recipe = brought(tmp_path / "set", LOGITS)
    opened = SyntheticSet.open(tmp_path / "set")
    blocks = [Block(0, ((2, 1), (0, 0), (1, 1))), Block(1, ((1, 0), (0, 1), (2, 0)))]
    writer = SetWriter(tmp_path / "other", recipe, TOY.info, blocks)
    for block in blocks:
        rows = [k * 3 + label for label, k in block.members]
        with pytest.raises(BadValue, match=r"soft labels have shape None, expected \(3, 3\)"):
            writer.add(block, opened.images[rows])
        writer.add(block, opened.images[rows], soft_labels=opened.soft_labels.values[rows])
    assert writer.finish().content == recipe.content
    again = SyntheticSet.open(tmp_path / "other")
    assert torch.equal(again.soft_labels.values, opened.soft_labels.values)
    plain = SetWriter(tmp_path / "plain", brought(tmp_path / "without"), TOY.info, blocks)
    with pytest.raises(BadValue, match=r"soft labels have shape \(3, 3\), expected None"):
        plain.add(blocks[0], opened.images[:3], soft_labels=opened.soft_labels.values[:3])


def changed(folder, **tensors):
    """Replace tensors of the only block, with the hash in the manifest."""
    path, manifest = folder / "blocks/00000.safetensors", json.loads((folder / "manifest.json").read_text())
    found = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(found, path)
    manifest["files"]["blocks/00000.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("soft_labels", "message"),
    [
        (LOGITS.flip(0), "its images have digest"),
        (LOGITS[:, :2].contiguous(), r"has soft labels of shape \(6, 2\), expected \(6, 3\)"),
        (None, "a block lacks its soft labels"),
    ],
)
def test_soft_labels_that_were_altered_are_found(soft_labels, message, tmp_path):
    brought(tmp_path / "set", LOGITS)
    changed(tmp_path / "set", soft_labels=soft_labels)
    for kind in (SyntheticSet, SetOnDisk):
        with pytest.raises(DataCorrupt, match=message):
            kind.open(tmp_path / "set")


def exported(tmp_path):
    brought(tmp_path / "set", LOGITS)
    export_png(SyntheticSet.open(tmp_path / "set"), tmp_path / "png")
    return tmp_path / "png" / "soft_labels.safetensors"


def test_a_folder_with_other_images_than_its_soft_labels_is_refused(tmp_path):
    exported(tmp_path)
    (tmp_path / "png/toy0/00001.png").rename(tmp_path / "png/toy0/00007.png")
    with pytest.raises(BadValue, match=r"soft_labels\.safetensors has no row for toy0/00007\.png"):
        import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet)
    for name in ("toy0/00007.png", "toy1/00001.png", "toy2/00001.png"):
        (tmp_path / "png" / name).unlink()
    with pytest.raises(BadValue, match="has 6 rows for 3 images"):
        import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet)


def test_a_file_of_soft_labels_that_does_not_say_enough_is_refused(tmp_path):
    path = exported(tmp_path)
    save_file({"soft_labels": LOGITS}, path, {"soft_label_kind": "logits", "class_ids": "[]"})
    with pytest.raises(BadValue, match="does not state the image of each row"):
        import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet)
    header = {"soft_label_kind": "logits", "class_ids": json.dumps(list(TOY.info.class_ids))}
    names = json.dumps([f"toy{row % 3}/{row // 3:05d}.png" for row in range(6)])
    for values, files, message in (
        (LOGITS, "toy0/00000.png", "has a list of files that cannot be read"),
        (LOGITS[:, :2].contiguous(), names, r"has shape \(6, 2\), expected \(6, 3\)"),
        (LOGITS[:, 0].contiguous(), names, r"has shape \(6,\), expected \(6, 3\)"),
    ):
        save_file({"soft_labels": values}, path, header | {"files": files})
        with pytest.raises(BadValue, match=message):
            import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet)
    path.write_bytes(b"soft labels")
    with pytest.raises(DataCorrupt, match="is not a file of soft labels"):
        import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet)


def test_what_a_file_says_of_its_soft_labels_is_not_said_of_others(tmp_path):
    path = tmp_path / "set.pt"
    torch.save({"images": IMAGES, "labels": LABELS, "soft_labels": LOGITS, "soft_label_kind": "logits"}, path)
    others = VALUES["probabilities"]
    for number, kind in enumerate(("probabilities", None)):
        recipe = import_tensors(
            path, TOY, tmp_path / str(number), soft_labels=others, soft_label_kind=kind, say=quiet
        )  # fmt: skip
        assert recipe.soft_label_kind == "probabilities"
    assert import_tensors(path, TOY, tmp_path / "own", say=quiet).soft_label_kind == "logits"
    with pytest.raises(BadValue, match=r"is 'probabilities', .* states 'logits'"):
        import_tensors(path, TOY, tmp_path / "no", soft_label_kind="probabilities", say=quiet)


def test_columns_of_a_folder_follow_its_classes(tmp_path):
    path = exported(tmp_path)
    opened, file = SyntheticSet.open(tmp_path / "set"), load_file(path)["soft_labels"]
    header = {
        "soft_label_kind": "logits",
        "files": json.dumps([f"toy{row % 3}/{row // 3:05d}.png" for row in range(6)]),
        "class_ids": json.dumps(["toy2", "toy0", "toy1"]),
    }
    save_file({"soft_labels": file[:, [2, 0, 1]].contiguous()}, path, header)
    assert import_folder(tmp_path / "png", TOY, tmp_path / "back", say=quiet).content == opened.manifest.content
    save_file({"soft_labels": file}, path, header | {"class_ids": '["cat", "dog", "cow"]'})
    with pytest.raises(ClassOrderError, match=r"soft_labels\.safetensors, field 'class_ids' lists class 0 as 'cat'"):
        import_folder(tmp_path / "png", TOY, tmp_path / "no", say=quiet)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_has_a_column_of_soft_labels(dtype, tmp_path):
    brought(tmp_path / "set", LOGITS.to(dtype))
    opened = SyntheticSet.open(tmp_path / "set")
    table = parquet.read_table(export_parquet(opened, tmp_path / "set.parquet"))
    found = np.stack([np.asarray(row, dtype=np.float64) for row in table["soft_labels"].to_pylist()])
    assert np.array_equal(found, opened.soft_labels.values.double().numpy())
    assert json.loads(table.schema.metadata[b"rd3"])["soft_label_kind"] == "logits"
    plain = parquet.read_table(export_parquet(_without(tmp_path), tmp_path / "plain.parquet"))
    assert plain.column_names == ["image", "label"]


def _without(tmp_path):
    brought(tmp_path / "plain")
    return SyntheticSet.open(tmp_path / "plain")


def test_the_datasets_library_reads_soft_labels(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    brought(tmp_path / "set", LOGITS)
    opened = SyntheticSet.open(tmp_path / "set")
    path = export_parquet(opened, tmp_path / "set.parquet")
    found = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert torch.equal(torch.tensor(found["soft_labels"][:]), opened.soft_labels.values)
