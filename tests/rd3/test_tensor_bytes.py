"""The sha256 of tensors against hashlib's of their bytes, written out."""

import hashlib
import struct

import torch

from rd3.tensor_bytes import sha256_of, value_bytes


def test_texts_and_values_in_order():
    matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    written = "é".encode() + struct.pack("<4f", 1, 3, 2, 4) + b"b" + struct.pack("<q", 7)
    assert sha256_of(["é", matrix.t(), "b", torch.tensor(7)]) == hashlib.sha256(written).hexdigest()
    assert sha256_of([torch.zeros(0, 3)]) == hashlib.sha256(b"").hexdigest()


def test_bytes_of_types_that_numpy_lacks():
    assert bytes(value_bytes(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))) == b"\x80\x3f\x00\xc0"
