"""Files of an evaluation's soft labels, which ``label_bytes`` counts: a set's own, or its teachers are asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rd3.device import repeatable_kernels, resolve_precision, usable_device
from rd3.errors import BadValue
from rd3.evaluation.budget import label_bytes, reuses_batches
from rd3.evaluation.hybrid import combine_logits
from rd3.evaluation.stored import StoredLabels, stored
from rd3.evaluation.teaching import LabelledViews, frozen
from rd3.protocol import Precision
from rd3.soft_labels import SoftLabels
from rd3.store import new_folder, write_errors
from rd3.tensor_bytes import value_bytes

if TYPE_CHECKING:
    from rd3.evaluation.student import Evaluation

FORMAT = 1
MANIFEST, LABELS, ROWS = "manifest.json", "labels", "rows"


def write_labels(
    evaluation: Evaluation, out: Path, *, device: torch.device | str, precision: Precision | None = None
) -> int:
    """Write the stored labels of an evaluation to the folder ``out``; returns their bytes.

    ``labels/NAME.logits`` are (N, C) numbers of type ``label_dtype``; with ``label_top_k`` k they are (N, k), and
    ``labels/NAME.classes`` are (N, k) unsigned 16-bit classes; ``rows/NAME.rows`` are (N,) 32-bit indices of the base
    images in the set.  A set's own labels are in ``labels/images.logits`` or ``labels/images.probabilities``, in the
    type that they have.  All are little-endian and without a header, with types and shapes in ``manifest.json``.  NAME
    is ``images``, or an epoch.  The files in ``labels`` have exactly the ``label_bytes`` of the result.  Crops, flips
    and mixes are those of :func:`rd3.evaluation.views.views`.  ``precision`` is that of the training, by default what
    the protocol's means on this device.  Raises :class:`BadValue` for labels that are not stored, or a folder in use,
    and :class:`StoreError` for one that cannot be written.
    """
    protocol, device, out = evaluation.recipe.protocol, usable_device(device), Path(out)
    own = evaluation.soft_labels if protocol.own_labels else None
    protocol.require_labels_of(None if own is None else own.kind)
    if protocol.labels == "hard" or protocol.soft_labels == "online":
        kind = "hard" if protocol.labels == "hard" else "on-the-fly"
        raise BadValue(f"This evaluation has {kind} labels, which are not stored.", "export one with stored labels")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadValue(f"{out} is not an empty folder.", "name a new folder")
    with write_errors(out), new_folder(out) as folder:
        for name in (LABELS, ROWS):
            (folder / name).mkdir()
        files: dict[str, list[int]] = {}
        with repeatable_kernels():
            for part, labels, rows in _labelled(evaluation, own, device, precision):
                tensors = {f"{LABELS}/{part}.{suffix}": tensor for suffix, tensor in labels.items()}
                for name, tensor in {**tensors, f"{ROWS}/{part}.rows": rows.int()}.items():
                    (folder / name).write_bytes(value_bytes(tensor))
                    files[name] = list(tensor.shape)
        total = sum(path.stat().st_size for path in (folder / LABELS).iterdir())
        # The number of classes; with label_top_k it is k, but then bytes do not depend on the number of classes.
        width = next(shape[1] for name, shape in files.items() if name.startswith(LABELS))
        stated = label_bytes(protocol, len(evaluation.images), width, evaluation.own_label_bytes)
        assert total == stated, "the closed form counts what is written"
        manifest = {
            "format": FORMAT,
            "evaluation": evaluation.recipe.key,
            "recipe": evaluation.recipe.model_dump(mode="json"),
            "label_bytes": total,
            "dtype": protocol.label_dtype if own is None else own.dtype,
            "files": files,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return total


def _labelled(
    evaluation: Evaluation, own: SoftLabels | None, device: torch.device, precision: Precision | None
) -> Iterator[tuple[str, dict[str, torch.Tensor], torch.Tensor]]:
    """Name, labels by the suffix of their file, and rows: of all images (``own``: the set's), or of each epoch."""
    if own is not None:
        yield "images", {own.kind: own.values}, torch.arange(len(own.values))
        return
    recipe = evaluation.recipe
    protocol = recipe.protocol
    labelled = {"epochs": protocol.label_epochs or protocol.epochs, "label_epochs": None, "label_reuse": "batches"}
    recipe = recipe.model_copy(update={"protocol": protocol.model_copy(update=labelled)})
    ran = resolve_precision(device, precision or protocol.precision)
    teachers = [frozen(teacher, protocol.teacher_mode, ran, device) for teacher in evaluation.teachers]
    images = evaluation.images.to(device)
    source = LabelledViews(images, evaluation.labels.to(device), teachers, recipe, ran)
    if source.once is not None:
        labels = stored(combine_logits(source.once.logits, protocol), protocol)
        yield "images", _joined([labels]), torch.arange(len(images))
        return
    kept: list[StoredLabels] = []
    rows: list[torch.Tensor] = []
    for batch, logits, _once in source:
        if not reuses_batches(protocol) or len(batch.rows) == protocol.batch_size:
            kept.append(stored(combine_logits(logits, protocol), protocol))
            rows.append(batch.rows)
        if batch.last:
            yield f"epoch_{batch.epoch:04d}", _joined(kept), torch.cat(rows)
            kept, rows = [], []


def _joined(labels: list[StoredLabels]) -> dict[str, torch.Tensor]:
    """The labels of several batches, by the suffix of their file."""
    tensors = {"logits": torch.cat([each.values for each in labels])}
    if classes := [each.classes for each in labels if each.classes is not None]:
        tensors["classes"] = torch.cat(classes)
    return tensors
