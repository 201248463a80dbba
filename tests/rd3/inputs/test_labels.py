"""Labels from outside: numbers, names, one-hot rows, and class orders that differ from the dataset's."""

from __future__ import annotations

import io
import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet as pq
from safetensors.torch import save_file

from rd3.errors import BadValue, ClassOrderError
from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.labels import class_labels
from rd3.synthetic_set import SyntheticSet, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
IMAGES = TOY.images("train", range(12))
NUMBERS = [2, 0, 1] * 4


def taken(labels, images=IMAGES):
    notes = []
    found = check_images_and_labels(images, labels, TOY.info, say=notes.append)
    assert found.labels.dtype == torch.int64
    return found.labels.tolist(), [note for note in notes if note.text.startswith("labels")]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint16", "uint64", ">i4"])
def test_integers_of_any_kind(dtype):
    assert taken(np.array(NUMBERS, dtype)) == (NUMBERS, [])


@pytest.mark.parametrize(
    "labels",
    [
        NUMBERS,
        tuple(NUMBERS),
        [np.int64(value) for value in NUMBERS],
        [torch.tensor(value) for value in NUMBERS],
        torch.tensor(NUMBERS)[:, None],
        torch.tensor(NUMBERS, dtype=torch.uint16),
        np.array(NUMBERS, dtype=object),
        [f"toy{value}" for value in NUMBERS],
        np.array([f"toy class {value}" for value in NUMBERS]),
    ],
)
def test_forms_of_the_same_labels(labels):
    assert taken(labels)[0] == NUMBERS


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool, torch.int64])
def test_one_hot_rows_are_converted(dtype):
    labels, [note] = taken(torch.nn.functional.one_hot(torch.tensor(NUMBERS), 3).to(dtype))
    assert labels == NUMBERS and "one-hot" in note.text


BITS = {"int8": 7, "uint8": 8, "int16": 15, "uint16": 16, "float16": 11, "bfloat16": 8}
"""Of the whole numbers that a type holds without a gap: those of an integer but its sign, of a float's significand."""


class Many(NamedTuple):
    """A class list of a length."""

    num_classes: int
    name: str = "many"

    @property
    def class_ids(self):
        return tuple(f"c{label}" for label in range(self.num_classes))

    class_names = class_ids


def forms(labels):
    """The same labels of one type in every form that keeps the type."""
    yield labels
    yield list(labels)
    yield labels[:, None]
    if labels.dtype != torch.bfloat16:
        plain = labels.numpy()
        yield from (plain, plain.astype(plain.dtype.newbyteorder(">")), list(plain), pa.array(plain))
        yield pd.Series(plain)
        yield pd.Series(plain).convert_dtypes(dtype_backend="pyarrow").astype(pd.ArrowDtype(pa.array(plain).type))


@pytest.mark.parametrize("name", BITS)
def test_a_type_must_hold_the_largest_label_exactly(name):
    """Up to 2^bits, where a float still rounds to itself, an integer no more."""
    dtype = getattr(torch, name)
    most = 2 ** BITS[name] - (not dtype.is_floating_point)
    numbers = torch.tensor([0, 1, most])
    for labels in forms(numbers.to(dtype)):
        assert class_labels(labels, 3, Many(most + 1))[0].tolist() == numbers.tolist()
        with pytest.raises(BadValue) as caught:
            class_labels(labels, 3, Many(most + 2))
        assert f"labels are {name}, which holds class numbers exactly only up to {most:,}" in str(caught.value)
        assert f"the largest label of many is {most + 1:,}." in str(caught.value)
        assert "int64 from where they were made" in caught.value.fix


def test_wrapped_labels_are_refused_by_their_type():
    labels = np.arange(300)
    for wrapped in (labels.astype(np.uint8), labels.astype(np.int8), torch.arange(300).bfloat16()):
        with pytest.raises(BadValue, match="the largest label of many is 299"):
            class_labels(wrapped, 300, Many(300))
    one_hot = torch.eye(300, dtype=torch.uint8)  # whose numbers are 0 and 1
    assert class_labels(one_hot, 300, Many(300))[0].tolist() == labels.tolist()
    assert class_labels(list(one_hot.numpy()), 300, Many(300))[0].tolist() == labels.tolist()


def test_the_type_of_a_parquet_column_counts(tmp_path):
    """A class order of 300 in a file whose labels are uint8."""
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(encoded, "png")
    pictures = pa.array([{"bytes": encoded.getvalue()}] * 3)
    names = {"names": [f"toy{label}" for label in range(300)], "_type": "ClassLabel"}
    notes = {"huggingface": json.dumps({"info": {"features": {"label": names}}})}
    table = pa.table({"image": pictures, "label": pa.array([0, 1, 2], pa.uint8())})
    pq.write_table(table.replace_schema_metadata(notes), tmp_path / "a.parquet")
    with pytest.raises(BadValue, match=r"labels are uint8, .* up to 255; the largest label of toy is 299"):
        import_tensors(tmp_path / "a.parquet", TOY, tmp_path / "set", say=lambda note: None)


def test_whole_floats_are_taken_and_said():
    labels, [note] = taken(np.array(NUMBERS, np.float32))
    assert labels == NUMBERS and note.doubtful and "float32 with whole values" in note.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(NUMBERS) + 0.5, "Row 0 has label 2.5; labels are torch.float64, expected whole class numbers"),
        ([0, 1, 1.9] * 4, "Row 2 has label 1.9"),
        (np.full(12, np.nan), "Row 0 has label nan"),
        (np.array(NUMBERS) > 0, "labels are booleans"),
        ([True, 0, 1] * 4, "labels are booleans"),
        (torch.tensor(NUMBERS) > 0, "labels are booleans"),
        (torch.softmax(torch.eye(3).repeat(4, 1), 1), r"labels are soft rows of shape (12, 3)"),
        (torch.eye(3).repeat(4, 1) - 1 / 3, "labels are soft rows"),
        (torch.eye(12), "labels are one-hot rows of shape (12, 12), expected (12,) integers or one-hot rows of 3"),
        (torch.ones(12, 3), "labels are soft rows"),
        ([0, 1] * 4, "expected (12,) integers"),
        ([1, 2, 3] * 4, "Row 2 has label 3, toy has labels 0 to 2"),
        ([0, 1, -1] * 4, "Row 2 has label -1"),
        ([0, 1, None] * 4, "The label of row 2 is None"),
        (["toy0", "toy1", "cat"] * 4, "Label 'cat' is not a class of toy"),
        (None, "labels are a NoneType"),
        ("mine.pt", "labels are text ('mine.pt')"),
        ({"a": 1}, "labels are a dict"),
        (3, "labels are an int"),
        (torch.tensor(3), "expected (12,) integers"),
        (np.array(NUMBERS) * 1j, "expected numbers"),
        ([[0], [0, 1]] * 6, "labels cannot be read as numbers"),
    ],
)
def test_what_is_refused(labels, message):
    with pytest.raises(BadValue) as caught:
        taken(labels)
    assert message in str(caught.value)


ORDER = ["toy2", "toy0", "toy1"]
STATED = np.arange(12) % 3  # in that order: 0 is toy2
EXPECTED = [int(ORDER[label][-1]) for label in STATED]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", ORDER),
        ("class_names", ["Toy_Class 2", "toy class 0", "toy class 1"]),
        ("class_to_idx", {name: label for label, name in enumerate(ORDER)}),
        ("idx_to_class", dict(enumerate(ORDER))),
        ("names", ORDER),
    ],
)
def test_the_class_order_of_a_file_is_obeyed(tmp_path, field, value):
    torch.save({"images": IMAGES, "labels": torch.from_numpy(STATED), field: value}, tmp_path / "mine.pt")
    notes = []
    import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set", say=notes.append)
    import_tensors((IMAGES, EXPECTED), TOY, tmp_path / "same")
    made, expected = SyntheticSet.open(tmp_path / "set"), SyntheticSet.open(tmp_path / "same")
    assert made.manifest.content == expected.manifest.content
    assert f"labels renumbered from the class order in mine.pt, field {field!r}" in " ".join(n.text for n in notes)


def test_names_are_not_renumbered_by_a_class_order_beside_them(tmp_path):
    names = [ORDER[label] for label in STATED]
    torch.save({"images": IMAGES, "labels": names, "classes": ORDER}, tmp_path / "mine.pt")
    notes = []
    import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set", say=notes.append)
    import_tensors((IMAGES, EXPECTED), TOY, tmp_path / "same")
    opened = [SyntheticSet.open(tmp_path / name).manifest.content for name in ("set", "same")]
    assert opened[0] == opened[1]
    assert not any("renumbered" in note.text for note in notes)


def test_the_class_order_in_a_safetensors_header_is_obeyed(tmp_path):
    tensors = {"images": IMAGES, "labels": torch.from_numpy(STATED)}
    save_file(tensors, tmp_path / "mine.safetensors", {"format": "pt", "classes": json.dumps(ORDER)})
    import_tensors(tmp_path / "mine.safetensors", TOY, tmp_path / "set")
    import_tensors((IMAGES, EXPECTED), TOY, tmp_path / "same")
    opened = [SyntheticSet.open(tmp_path / name).manifest.content for name in ("set", "same")]
    assert opened[0] == opened[1]


@pytest.mark.parametrize("value", [["cat", "dog", "cow"], ["toy0", "toy1"], ["toy0"] * 3, [0.5, 1.5, 2.5], "toy0", {}])
def test_a_class_order_that_cannot_be_obeyed_is_refused(tmp_path, value):
    torch.save({"images": IMAGES, "labels": torch.from_numpy(STATED), "classes": value}, tmp_path / "mine.pt")
    with pytest.raises(ClassOrderError, match=r"mine\.pt, field 'classes'"):
        import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("soft_labels", (12, 4)), ("teacher_logits", (5, 12, 3)), ("y_syn", (5, 12, 3)), ("label_syn", (12,))],
)
def test_soft_labels_that_are_not_one_row_for_each_image_are_refused(tmp_path, name, shape):
    file = {"images": IMAGES, "labels": torch.tensor(NUMBERS), name: torch.rand(shape)}
    torch.save(file, tmp_path / "mine.pt")
    save_file(file, tmp_path / "mine.safetensors")
    for path in (tmp_path / "mine.pt", tmp_path / "mine.safetensors"):
        with pytest.raises(
            BadValue, match=f"holds '{name}' beside its labels.*is not a tensor with one row of 3 floats.*leave '"
        ):
            import_tensors(path, TOY, tmp_path / "set")


def test_soft_labels_as_a_numpy_array_are_refused_and_not_left_out(tmp_path):
    file = {"images": IMAGES, "labels": torch.tensor(NUMBERS), "lr_teacher": np.float64(0.1)}
    torch.save(file | {"teacher_logits": np.zeros((12, 3), np.float32)}, tmp_path / "mine.pt")
    with pytest.raises(BadValue, match=r"holds 'teacher_logits' beside its labels.*is not a tensor with one row of 3"):
        import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set")


def test_other_fields_are_said(tmp_path):
    file = {"images": IMAGES, "labels": torch.tensor(NUMBERS), "lr": torch.tensor(0.1), "num_classes": 3}
    torch.save(file, tmp_path / "mine.pt")
    with pytest.warns(UserWarning, match=r"not read from mine\.pt: lr, num_classes"):
        import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set")
