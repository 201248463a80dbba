"""Sets in Parquet files: RD3's exports there and back, files of the datasets library, and damaged ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from rd3.errors import BadValue, ClassOrderError, DataCorrupt, RD3Error
from rd3.seeding import generator
from rd3.synthetic_set import SyntheticSet, export_parquet, import_folder, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
IMAGES = (torch.arange(6 * 3 * 16 * 16) % 251).to(torch.uint8).reshape(6, 3, 16, 16)
LABELS = torch.tensor([2, 0, 1, 1, 2, 0])
LOGITS = 5 * torch.nn.functional.one_hot(LABELS, 3) + torch.randn(6, 3, generator=generator(0, "logits"))


def png(image: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG")
    return stream.getvalue()


def written(path: Path, notes: dict[bytes, bytes] | None = None, **columns: Any) -> Path:
    """A file with these columns, ``image`` and ``label`` by default."""
    given: dict[str, Any] = {"image": [{"bytes": png(one), "path": None} for one in IMAGES], "label": LABELS.tolist()}
    rows = {name: value for name, value in (given | columns).items() if value is not None}
    parquet.write_table(pa.table(rows).replace_schema_metadata(notes), path)
    return path


def taken(path: Path, out: Path) -> tuple[SyntheticSet, str]:
    notes: list[str] = []
    import_tensors(path, TOY, out, say=lambda note: notes.append(note.text))
    return SyntheticSet.open(out), " | ".join(notes)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32, torch.float64])
def test_an_export_comes_back_as_the_same_set(dtype, tmp_path):
    soft = {} if dtype is None else {"soft_labels": LOGITS.to(dtype), "soft_label_kind": "logits"}
    recipe = import_tensors((IMAGES, LABELS), TOY, tmp_path / "set", say=lambda note: None, **soft)
    path = export_parquet(SyntheticSet.open(tmp_path / "set"), tmp_path / "set.parquet")
    again = import_tensors(path, TOY, tmp_path / "again", say=lambda note: None)
    assert again.key == recipe.key


def test_bf16_soft_labels_come_back_in_fp32_with_the_same_values(tmp_path):
    options = {"soft_labels": LOGITS.bfloat16(), "soft_label_kind": "logits"}
    import_tensors((IMAGES, LABELS), TOY, tmp_path / "set", say=lambda note: None, **options)
    opened = SyntheticSet.open(tmp_path / "set")
    again, _notes = taken(export_parquet(opened, tmp_path / "set.parquet"), tmp_path / "again")
    assert again.soft_labels.dtype == "float32"
    assert torch.equal(again.soft_labels.values, opened.soft_labels.values.float())


def test_names_of_a_class_label_are_the_class_order(tmp_path):
    ids = list(TOY.info.class_ids)[::-1]
    notes = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ids}}}}).encode()}
    opened, _notes = taken(written(tmp_path / "a.parquet", notes), tmp_path / "set")
    expected = torch.stack([IMAGES[2 - label == LABELS] for label in range(3)], dim=1).flatten(0, 1)
    assert torch.equal(opened.images, expected)
    wrong = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}).encode()}
    with pytest.raises(ClassOrderError, match="class_names"):
        taken(written(tmp_path / "b.parquet", wrong), tmp_path / "no")


def test_files_of_the_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=list(TOY.info.class_ids)),
        source=datasets.Value("string"),
    )
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in IMAGES]
    rows = {"image": pictures, "label": LABELS.tolist(), "source": ["x"] * 6}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hub.parquet"))
    opened, notes = taken(tmp_path / "hub.parquet", tmp_path / "set")
    assert "not read from hub.parquet: source" in notes
    assert torch.equal(opened.images[0], IMAGES[1]) and torch.equal(opened.labels, torch.tensor([0, 1, 2] * 2))


@pytest.mark.parametrize("stated", [True, False])
def test_columns_of_the_images_are_no_class_order(stated, tmp_path):
    names = {"info": {"features": {"label": {"names": list(TOY.info.class_ids)}}}}
    of_images = {
        "class_name": [TOY.info.class_ids[label] for label in LABELS],
        "class": LABELS.tolist(),
        "embedding": [[0.5, 0.2, 0.3]] * 6,
    }
    path = written(
        tmp_path / "a.parquet", {b"huggingface": json.dumps(names).encode()} if stated else None, **of_images
    )
    opened, notes = taken(path, tmp_path / "set")
    assert opened.manifest.key == import_tensors((IMAGES, LABELS), TOY, tmp_path / "plain").key
    assert "not read from a.parquet: class, class_name, embedding" in notes


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 3)])
def test_soft_labels_in_any_list_of_floats(kind, tmp_path):
    rows = pa.array([list(np.asarray(row, dtype=np.float16)) for row in LOGITS.half().numpy()], kind)
    opened, _notes = taken(written(tmp_path / "a.parquet", soft_labels=rows), tmp_path / "set")
    assert torch.equal(opened.soft_labels.values[0].double(), LOGITS.half()[1].double())


def test_soft_labels_under_another_name(tmp_path):
    soft = LOGITS.softmax(1).numpy()
    opened, notes = taken(written(tmp_path / "a.parquet", label_syn=list(soft)), tmp_path / "set")
    assert (
        "soft labels are read from a.parquet, field 'label_syn'" in notes and opened.soft_labels.kind == "probabilities"
    )
    np.testing.assert_array_equal(opened.soft_labels.values[0].numpy(), soft[1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": None}, "a.parquet has image, expected a column 'label'"),
        ({"image": None}, "has label, expected a column 'image'"),
        ({"image": [[1.0]] * 6}, "Column 'image' of a.parquet is list<.*expected a struct with encoded bytes"),
        ({"image": [{"bytes": b"GIF", "path": None}] * 6}, "Image 0 cannot be decoded"),
        ({"image": [{"bytes": None, "path": "/etc/hostname"}] * 6}, "has no image bytes in row 0"),
        ({"soft_labels": [[0.1, 0.2]] * 6}, "'soft_labels' beside its labels .*is not a tensor with one row of 3"),
        ({"soft_labels": [[0.1, None, 0.2]] * 6}, "'soft_labels' beside its labels"),
        ({"label": [0, 1, None, 2, 1, 0]}, "label of row 2 is None"),
        (
            {
                "image": pa.array([], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": pa.array([], pa.int64()),
                "soft_labels": pa.array([], pa.list_(pa.float32())),
            },
            "'soft_labels' beside its labels",
        ),
    ],
)
def test_what_is_missing_or_of_another_form_is_said(columns, message, tmp_path):
    with pytest.raises(RD3Error, match=message):
        taken(written(tmp_path / "a.parquet", **columns), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_broken_files_are_said(tmp_path):
    named = written(tmp_path / "a.parquet").read_bytes().replace(b"label", b"\xc7abel")
    (tmp_path / "named.parquet").write_bytes(named)
    with pytest.raises(DataCorrupt, match="is not a complete Parquet file"):
        taken(tmp_path / "named.parquet", tmp_path / "no")
    whole = written(tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-40])
    (tmp_path / "altered.parquet").write_bytes(whole[:-200] + bytes(190) + whole[-10:])
    (tmp_path / "page.parquet").write_text("<!DOCTYPE html><html>Not found</html>")
    (tmp_path / "empty.parquet").write_bytes(b"")
    for name, message in (
        ("cut", "is damaged: it has"),
        ("altered", "is not a complete Parquet file"),
        ("page", "HTML"),
        ("empty", "empty"),
    ):
        with pytest.raises((DataCorrupt, BadValue), match=message):
            taken(tmp_path / f"{name}.parquet", tmp_path / "no")


@pytest.mark.parametrize("place", [".", "data"])
def test_a_folder_with_a_file_leads_to_it(place, tmp_path):
    folder = tmp_path / "hub" / place
    folder.mkdir(parents=True)
    file = written(folder / "train-00000-of-00001.parquet")
    with pytest.raises(BadValue, match=r"no class folders, but 1 \.parquet file") as caught:
        import_folder(tmp_path / "hub", TOY, tmp_path / "no")
    assert caught.value.fix == f"import the file itself: {file}"
    written(folder / "train-00001-of-00001.parquet")
    with pytest.raises(BadValue, match="join them in one file"):
        import_folder(tmp_path / "hub", TOY, tmp_path / "no")
