"""Soft labels from outside: what they are, what is said about them, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rd3.errors import BadValue, ClassOrderError
from rd3.inputs.checked import check_images_and_labels
from rd3.seeding import generator
from rd3.synthetic_set import SyntheticSet, import_tensors
from rd3.testing import ToyDataset

TOY = ToyDataset(side=16)
IMAGES = TOY.images("train", range(12))
LABELS = torch.tensor([2, 0, 1] * 4)
LOGITS = 3 * torch.nn.functional.one_hot(LABELS, 3) + torch.randn(12, 3, generator=generator(0, "logits"))
P = LOGITS.softmax(1)


def taken(values, kind=None, labels=LABELS):
    notes = []
    found = check_images_and_labels(
        IMAGES[: len(labels)], labels, TOY.info, soft_labels=values, soft_label_kind=kind, say=notes.append
    )
    return found.soft_labels, [note for note in notes if note.text.startswith("soft labels")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("values", "kind"), [(LOGITS, "logits"), (P, "probabilities")])
def test_the_kind_is_found_and_type_and_values_are_kept(values, kind, dtype):
    given = values.to(dtype)
    soft, notes = taken(given)
    assert soft.kind == kind and torch.equal(soft.values, given) and soft.values.dtype == dtype
    assert soft.nbytes == 12 * 3 * given.element_size()
    agreeing = int((given.argmax(1) == LABELS).sum())
    assert f"12 x 3 {str(dtype)[6:]} {kind}" in notes[0].text
    assert f"at its class for {agreeing} of 12 images" in notes[-1].text and not notes[-1].doubtful


def test_forms_of_the_same_values():
    for form in (LOGITS.numpy(), LOGITS.tolist(), list(LOGITS)):
        assert torch.equal(taken(form)[0].values.float(), LOGITS)


def test_largest_labels_that_often_differ_from_the_class_are_a_doubt():
    exchanged = P.clone()
    exchanged[:3] = exchanged[:3].roll(1, 1)
    assert taken(exchanged)[1][-1].doubtful


def test_probabilities_stated_as_logits_are_a_doubt():
    soft, notes = taken(P, "logits")
    assert soft.kind == "logits"
    assert any(note.doubtful and "stated as logits, but their rows sum to 1" in note.text for note in notes)


def edited(values: torch.Tensor, value: float) -> torch.Tensor:
    changed = values.clone()
    changed[4, 1] = value
    return changed


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (edited(LOGITS, float("nan")), None, "Row 4 of soft_labels has a value that is NaN or infinite"),
        (edited(P, float("inf")), "probabilities", "Row 4 of soft_labels has a value that is NaN or infinite"),
        (1.1 * P, None, "no value below 0, as logits have, and row"),
        (edited(P, 3.0), "probabilities", r"Row 4 of soft_labels sums to 3\.\d*, where probabilities sum to 1"),
        (edited(P, -0.5), "probabilities", r"Row 4 of soft_labels has -0.5, which is not a probability"),
        (P, "softmax", "soft_label_kind is 'softmax'.*give logits or probabilities"),
        (P, 3, "soft_label_kind is an int"),
        (P[:11], None, r"float32 of shape \(11, 3\), expected floats of shape \(12, 3\)"),
        (P[:, :2], None, r"of shape \(12, 2\), expected floats of shape \(12, 3\)"),
        (P.argmax(1), None, r"int64 of shape \(12,\), expected floats"),
        ((1000 * P).long(), None, r"int64 of shape \(12, 3\), expected floats"),
        (
            LOGITS.roll(1, 0)[torch.randperm(12, generator=generator(3, "rows"))],
            None,
            "not significantly better",
        ),
    ],
)
def test_what_is_refused(values, kind, message):
    with pytest.raises(BadValue, match=message):
        taken(values, kind)


@pytest.mark.parametrize("values", [LOGITS, P])
def test_permuted_columns_are_refused_with_their_order(values):
    order = [2, 0, 1]
    permuted = torch.empty_like(values)
    permuted[:, order] = values
    with pytest.raises(
        ClassOrderError, match=r"columns of soft_labels look permuted.*class toy0 is column 2"
    ) as caught:
        taken(permuted)
    assert f"soft_labels[:, {order}]" in str(caught.value)
    assert torch.equal(taken(permuted[:, order])[0].values, values)


def test_the_order_of_permuted_columns_is_one_of_those_in_the_file(tmp_path):
    """The file states an order, in which its labels are, but not its columns; the fix keeps the stated order."""
    stated = ["toy2", "toy0", "toy1"]
    labels = torch.tensor([stated.index(f"toy{label}") for label in LABELS.tolist()])
    file = {"images": IMAGES, "labels": labels, "classes": stated}
    torch.save(file | {"soft_labels": LOGITS}, tmp_path / "mine.pt")
    with pytest.raises(ClassOrderError, match="class toy0 is column 0, not 1") as caught:
        import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "out")
    order = json.loads(caught.value.fix.partition("the stated class order: soft_labels[:, ")[2][:-1])
    torch.save(file | {"soft_labels": LOGITS[:, order]}, tmp_path / "mine.pt")
    import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "out")
    assert SyntheticSet.open(tmp_path / "out").soft_labels is not None


def test_soft_labels_with_a_note_of_the_same_name_are_read(tmp_path):
    save_file(
        {"images": IMAGES, "labels": LABELS, "soft_labels": LOGITS},
        tmp_path / "mine.safetensors",
        {"soft_labels": "of a ResNet-18", "labels": "int64"},
    )
    import_tensors(tmp_path / "mine.safetensors", TOY, tmp_path / "out")
    assert SyntheticSet.open(tmp_path / "out").soft_labels is not None


def test_a_kind_without_labels_is_refused():
    with pytest.raises(BadValue, match="soft_label_kind is 'logits', but there are no soft labels"):
        taken(None, "logits")


ORDER = ["toy2", "toy0", "toy1"]


@pytest.mark.parametrize("name", ["soft_labels", "label_syn", "teacher_logits", "y_syn"])
def test_files_with_soft_labels_of_any_name_are_taken(tmp_path, name):
    file = {"images": IMAGES, "labels": LABELS, name: LOGITS.half()}
    torch.save(file | {"soft_label_kind": "logits"}, tmp_path / "mine.pt")
    save_file(file, tmp_path / "mine.safetensors", {"soft_label_kind": "logits"})
    keys = set()
    for place, path in enumerate((tmp_path / "mine.pt", tmp_path / "mine.safetensors")):
        notes = []
        recipe = import_tensors(path, TOY, tmp_path / str(place), say=notes.append)
        assert recipe.soft_label_kind == "logits"
        assert any("(as stated)" in note.text for note in notes)
        assert any(f"field {name!r}" in note.text for note in notes) is (name != "soft_labels")
        keys.add(recipe.key)
    assert len(keys) == 1


def test_columns_are_renumbered_with_the_labels(tmp_path):
    """Of a file with another class order: label and column 0 are toy2."""
    stated = torch.tensor([ORDER.index(f"toy{label}") for label in LABELS.tolist()])
    columns = LOGITS[:, [int(name[-1]) for name in ORDER]]
    torch.save({"images": IMAGES, "labels": stated, "soft_labels": columns, "classes": ORDER}, tmp_path / "mine.pt")
    recipe = import_tensors(tmp_path / "mine.pt", TOY, tmp_path / "set", say=lambda note: None)
    same = import_tensors((IMAGES, LABELS), TOY, tmp_path / "same", soft_labels=LOGITS, say=lambda note: None)
    assert recipe.key == same.key


def test_an_order_that_leaves_columns_unknown_is_refused(tmp_path):
    """Its labels are known, but two of its names are the same class."""
    file = {"images": IMAGES, "labels": LABELS, "soft_labels": LOGITS}
    torch.save(file | {"classes": ["toy0", "toy1", "toy2", "TOY 2"]}, tmp_path / "four.pt")
    import_tensors(tmp_path / "four.pt", TOY, tmp_path / "set", say=lambda note: None)
    torch.save(file | {"classes": ["toy0", "toy1"], "labels": LABELS % 2}, tmp_path / "two.pt")
    with pytest.raises(ClassOrderError, match="lists class 2 not at all"):
        import_tensors(tmp_path / "two.pt", TOY, tmp_path / "no", say=lambda note: None)


def test_two_fields_of_soft_labels_and_two_statements_are_refused(tmp_path):
    file = {"images": IMAGES, "labels": LABELS, "label_syn": LOGITS}
    torch.save(file | {"logits": LOGITS}, tmp_path / "two.pt")
    with pytest.raises(BadValue, match="holds 'label_syn' and 'logits', which all look like soft labels"):
        import_tensors(tmp_path / "two.pt", TOY, tmp_path / "set")
    torch.save(file | {"soft_label_kind": "logits"}, tmp_path / "kind.pt")
    with pytest.raises(BadValue, match=r"soft_label_kind is 'probabilities', .* states 'logits'"):
        import_tensors(tmp_path / "kind.pt", TOY, tmp_path / "set", soft_label_kind="probabilities")


def test_soft_labels_alone_ask_for_the_classes_too():
    with pytest.raises(BadValue, match=r"labels are soft rows.*the soft ones beside them as soft_labels"):
        taken(None, labels=P)


def test_rows_and_columns_reach_the_opened_set(tmp_path):
    import_tensors((IMAGES, LABELS), TOY, tmp_path / "set", soft_labels=P, say=lambda note: None)
    opened = SyntheticSet.open(tmp_path / "set")
    for image, label, soft in zip(opened.images, opened.labels.tolist(), opened.soft_labels.values, strict=True):
        [row] = [row for row in range(12) if torch.equal(IMAGES[row], image)]
        assert torch.equal(soft, P[row]) and label == int(LABELS[row])
    assert json.loads((tmp_path / "set/manifest.json").read_text())["recipe"]["settings"] == {
        "soft_label_kind": "probabilities"
    }
    assert isinstance(opened.soft_labels.values.numpy(), np.ndarray)
