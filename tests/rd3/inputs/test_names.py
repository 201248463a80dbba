"""Class names as sources and file systems write them, and the forms of lists of classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rd3.datasets import dataset_info
from rd3.errors import BadValue
from rd3.inputs.class_order import StatedOrder, name_of_each_label
from rd3.inputs.labels import class_labels
from rd3.inputs.names import match_names


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (["a", "b"], ["b", "a"], {"a": 1, "b": 0}),
        (["cafe\u0301"], ["x", "caf\u00e9"], {"cafe\u0301": 1}),
        ([" cat", "Dog "], ["cat", "dog"], {" cat": 0, "Dog ": 1}),
        (["golden_retriever"], ["Golden Retriever, dog"], {"golden_retriever": 0}),
        (["A", "a"], ["a", "A"], {"A": 1, "a": 0}),
        (["a"], ["A"], {"a": 0}),
        (["a"], ["A", "a,b"], {}),  # either of two
        (["A", "a "], ["a"], {"a ": 0}),
        (["x"], ["a"], {}),
    ],
)
def test_names_are_matched(found, wanted, expected):
    assert match_names(found, wanted) == expected


def test_a_name_of_two_classes_is_never_taken_for_one_of_them():
    info = dataset_info("imagenet1k")
    names = [name for name in info.class_names if name.lower().startswith("cardigan")]
    assert len(names) == 2  # the dog and the garment
    labels = class_labels(names, 2, info)[0].tolist()
    assert [info.class_names[label] for label in labels] == names
    with pytest.raises(BadValue, match="'CARDIGAN' is not a class"):
        class_labels(["CARDIGAN"] * 2, 2, info)


KERAS = {"0": ["n01", "tench"], "1": ["n02", "goldfish"]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["b", "a"], ["b", "a"]),
        (np.array(["b", "a"]), ["b", "a"]),
        (torch.tensor([1, 0]), ["1", "0"]),
        (b"b\na\n", ["b", "a"]),
        ("b, a", ["b", "a"]),
        ("tench, Tinca tinca\r\ngoldfish, Carassius auratus\n", ["tench, Tinca tinca", "goldfish, Carassius auratus"]),
        (json.dumps(["b", "a"]), ["b", "a"]),
        (json.dumps(KERAS), ["n01", "n02"]),
        (list(KERAS.values()), ["n01", "n02"]),
        ({"a": 1, "b": 0}, ["b", "a"]),
        ({"a": "1", "b": "0"}, ["b", "a"]),
        ({1: "a", 0: "b"}, ["b", "a"]),
        ({"7": 1, "5": 0}, ["5", "7"]),  # class_to_idx of classes with numbers for names
        ({"1": "5", "0": "7"}, ["7", "5"]),  # id2label of these
        ('["b", ', []),
        ("[" * 100_000, []),
        ([True, False], []),
        ([0.5], []),
        ({"a": 0.5}, []),
        ({"a": "b"}, []),
        ({"a": "1" * 5000}, []),  # more digits than Python converts
        (None, []),
    ],
)
def test_lists_of_classes_are_read(value, expected):
    found = name_of_each_label(value)
    assert [found[label] for label in sorted(found)] == expected
    if expected:
        assert sorted(found) == list(range(len(expected)))
        assert StatedOrder.read(value, "x").names == found
