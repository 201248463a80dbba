"""The budget of an evaluation in closed form: images that the student sees, and bytes of its labels."""

from __future__ import annotations

import math

from rd3.protocol import EvalProtocol

_BYTES = {"fp16": 2, "fp32": 4}
_CLASS_BYTES = 2
"""Bytes of the class of a stored logit, a 16-bit integer."""


def image_steps(protocol: EvalProtocol, images: int) -> int:
    """Images that the student sees in training, over all epochs, from a set of ``images``."""
    return protocol.epochs * _per_epoch(protocol, images)


def steps(protocol: EvalProtocol, images: int) -> int:
    """Batches that the student is trained on, over all epochs."""
    return protocol.epochs * math.ceil(_per_epoch(protocol, images) / protocol.batch_size)


def logits_bytes(protocol: EvalProtocol, images: int, classes: int, teachers: int, precision: str) -> int:
    """Bytes of the teachers' logits on all views, in the type in which they are computed at ``bf16`` or ``fp32``."""
    return image_steps(protocol, images) * classes * teachers * (2 if precision == "bf16" else 4)


def label_bytes(protocol: EvalProtocol, images: int, classes: int, own: int | None = None) -> int | None:
    """Bytes of all stored soft labels; 0 for hard labels, None if the teachers label in training.

    ``own``: bytes of the soft labels that the set comes with, which count where the student learns from them.
    Only labels count: RD3 draws crops, flips and mixes again from the student seed, which others store beside them.
    """
    if protocol.labels == "hard":
        return 0
    if protocol.soft_labels in ("own", "online"):
        return own if protocol.own_labels else None
    views = (protocol.label_epochs or protocol.epochs) * _per_epoch(protocol, images)
    count = images if protocol.soft_labels == "once" else views
    logit_bytes = _BYTES[protocol.label_dtype]
    if protocol.label_top_k is None:
        return count * classes * logit_bytes
    return count * protocol.label_top_k * (logit_bytes + _CLASS_BYTES)


def reuses_batches(protocol: EvalProtocol) -> bool:
    """Whether training draws single batches from the labelled epochs, all of them full."""
    return protocol.label_epochs is not None and protocol.label_reuse == "batches"


def _per_epoch(protocol: EvalProtocol, images: int) -> int:
    """Images in the batches of one epoch: a last batch of one image is dropped; reused batches are full."""
    rest = images % protocol.batch_size
    if reuses_batches(protocol):
        return images - rest
    return images - (rest if rest == 1 else 0)
