"""A teacher's folder: its manifest, writing it, and loading it through checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save

from rd3.artifact import ArtifactManifest
from rd3.augment import to_unit
from rd3.data_checks import check_classes
from rd3.datasets import Dataset, Split
from rd3.device import resolve_precision, set_memory_format, usable_device
from rd3.errors import DataCorrupt
from rd3.models import NormalisedNetwork, build_network
from rd3.recipe import Normalisation, TeacherRecipe
from rd3.store import sha256_file, write_atomically
from rd3.values import Frozen

WEIGHTS, CURVE = "weights.safetensors", "curve.parquet"
VERIFIED_IMAGES = 1000
"""Largest length of the verification list."""
TOLERANCE_PCT = 0.5
"""Maximum difference of a recount, in percentage points: allows for a device's rounding, not for other weights."""
TEST_BATCH = 250

Progress = Callable[[float, str], None]


class Verification(Frozen):
    """Correct predictions on a fixed list of images, counted in fp32 when the teacher was trained or imported."""

    split: Split
    count: int
    correct: int
    precision: Literal["fp32"] = "fp32"


class TeacherManifest(ArtifactManifest):
    """The content of ``manifest.json``."""

    noun: ClassVar[str] = "teacher"
    fix: ClassVar[str] = "fetch, train or import the teacher again"

    network: str
    resolution: int
    normalisation: Normalisation
    weights_sha256: str
    """sha256 of the weights file."""
    origin: str
    """Source of the weights: trained here, or what was imported."""
    test_top1_pct: float
    test_correct: int
    test_count: int
    test_precision: Literal["fp32", "bf16"]
    ran_precision: Literal["fp32", "bf16"] | None = None
    """Precision of the training; None for imported weights and in older manifests."""
    tested_on: Split = "test"
    """``validation`` for a teacher trained without these images, which must not depend on the test split."""
    verification: Verification
    class_order: list[int] | None = None
    """Row of the imported classifier that was kept for each class of the dataset; None if all were, in their order."""
    curve: list[dict[str, float]] = []
    """One row per epoch: ``epoch`` from 1, ``loss`` (mean over images), ``train_top1_pct``, ``lr`` (of the last
    step)."""

    def test_figures(self) -> dict[str, Any]:
        """The figures of the test, for the ledger."""
        return {
            "top1_pct": self.test_top1_pct,
            "correct": self.test_correct,
            "tested": self.test_count,
            "tested_on": self.tested_on,
        }


def verification_list(dataset: Dataset) -> range:
    """Positions of the first images of the validation split, in which the classes take turns."""
    return range(min(VERIFIED_IMAGES, len(dataset.labels("validation"))))


class Predictions(NamedTuple):
    """Predictions of a network on images of a split."""

    split: Split
    predicted: torch.Tensor
    """(N,) int64: the class with the largest logit, or :data:`NOT_FINITE`."""
    labels: torch.Tensor
    """(N,) int64."""

    @property
    def correct(self) -> int:
        return int((self.predicted == self.labels).sum())

    @property
    def top1_pct(self) -> float:
        """Share of correct predictions (0-100)."""
        return 100 * self.correct / len(self.labels)


NOT_FINITE = -1
"""In place of a class where a logit is NaN or infinite."""


def predict(
    network: Callable[[torch.Tensor], torch.Tensor],
    dataset: Dataset,
    split: Split,
    positions: Sequence[int],
    *,
    device: torch.device,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: Progress = lambda fraction, note: None,
) -> Predictions:
    """Predictions on the images of a split at these positions.

    ``network`` is in eval mode and takes (B, 3, H, W) in [0, 1].
    """
    labels = torch.from_numpy(dataset.labels(split)[list(positions)].copy())
    predicted = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for start in range(0, len(positions), TEST_BATCH):
            batch = positions[start : start + TEST_BATCH]
            logits = network(to_unit(dataset.images(split, batch).to(device)))
            predicted.append(logits.argmax(dim=1).where(logits.isfinite().all(dim=1), NOT_FINITE))
            stop = start + len(batch)
            progress(stop / len(positions), f"{split} images {stop}/{len(positions)}")
    return Predictions(split, torch.cat(predicted).cpu(), labels)


def write_teacher(
    out: Path,
    recipe: TeacherRecipe,
    network: NormalisedNetwork,
    dataset: Dataset,
    *,
    device: torch.device,
    origin: str,
    curve: list[dict[str, float]],
    progress: Progress,
    precision: Literal["fp32", "bf16"] | None = None,
    examine: Callable[[Predictions], None] = lambda tested: None,
    class_order: Sequence[int] | None = None,
) -> TeacherManifest:
    """Test a trained network, count its verification list and write the folder, the manifest last.

    A teacher trained on the ``fit`` part is tested on the validation images only, which it has not seen.

    The test runs at ``precision``, that of the training; for an imported teacher, which has none, at what ``auto``
    means on the device.  The verification list is counted in fp32.  ``examine`` gets the predictions of the test before
    anything is written, and may raise.  ``class_order`` is recorded.
    """
    network.eval()
    test_precision = precision or resolve_precision(device, "auto")
    set_memory_format(network, test_precision)
    validation = verification_list(dataset)
    split: Split = "validation" if recipe.data.split == "fit" else "test"
    tested = len(dataset.labels(split))
    total = tested + len(validation)
    test = predict(
        network, dataset, split, range(tested), device=device, precision=test_precision,
        progress=lambda fraction, note: progress(fraction * tested / total, note),
    )  # fmt: skip
    examine(test)
    verified = predict(
        network, dataset, "validation", validation, device=device,
        progress=lambda fraction, note: progress((tested + fraction * len(validation)) / total, note),
    )  # fmt: skip
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.network.state_dict().items()}
    write_atomically(out / WEIGHTS, save(tensors))
    manifest = TeacherManifest.of(
        recipe,
        network=recipe.network,
        resolution=recipe.resolution,
        normalisation=recipe.normalisation,
        weights_sha256=sha256_file(out / WEIGHTS),
        origin=origin,
        test_top1_pct=test.top1_pct,
        test_correct=test.correct,
        test_count=tested,
        test_precision=test_precision,
        ran_precision=precision,
        tested_on=split,
        verification=Verification(split="validation", count=len(validation), correct=verified.correct),
        curve=curve,
        class_order=None if class_order is None else list(class_order),
    )
    manifest.write(out, exclude={"class_order"} if class_order is None else None)  # earlier versions refuse the field
    return manifest


def load(
    folder: Path,
    recipe: TeacherRecipe,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    verify: bool = True,
    formerly: str | None = None,
) -> NormalisedNetwork:
    """Load the teacher in ``folder``: fp32, frozen, in eval mode, on ``device``; it takes (B, 3, H, W) in [0, 1].

    ``formerly`` is the key under which the teacher was trained, if that has an older format.  Raises
    :class:`ClassOrderError` for another class list, :class:`DataMissing` for missing files, and :class:`DataCorrupt`
    for the folder of another teacher, for weights other than the manifest's and, with ``verify``, for a recount on the
    verification list that is more than half a percentage point off.
    """
    device = usable_device(device)
    network, manifest = _load(Path(folder), recipe, dataset, device, formerly)
    if verify:
        _recount(network, manifest, dataset, device)
    return network


def verify(
    folder: Path,
    recipe: TeacherRecipe,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    formerly: str | None = None,
) -> dict[str, Any]:
    """Load the teacher with all checks and return the result of the recount; raises as :func:`load`."""
    device = usable_device(device)
    network, manifest = _load(Path(folder), recipe, dataset, device, formerly)
    correct = _recount(network, manifest, dataset, device)
    recorded = manifest.verification
    return {
        "split": recorded.split,
        "count": recorded.count,
        "correct": correct,
        "recorded": recorded.correct,
        "difference_pct": 100 * (correct - recorded.correct) / recorded.count,
        "tested_on": manifest.tested_on,
        "test_top1_pct": manifest.test_top1_pct,
    }


def _load(
    folder: Path, recipe: TeacherRecipe, dataset: Dataset, device: torch.device, formerly: str | None
) -> tuple[NormalisedNetwork, TeacherManifest]:
    manifest, path = TeacherManifest.read(folder), folder / WEIGHTS
    manifest.check(folder, recipe, formerly)
    check_classes(recipe, dataset.info)
    manifest.check_file(folder, WEIGHTS, manifest.weights_sha256)
    network = build_network(recipe.network, dataset.info.num_classes, recipe.resolution, recipe.normalisation)
    try:
        network.network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise DataCorrupt(
            f"{path} does not fit {recipe.network}: {str(error).splitlines()[-1].strip()}", "train or import it again"
        ) from None
    return network.eval().requires_grad_(False).to(device), manifest


def _recount(network: NormalisedNetwork, manifest: TeacherManifest, dataset: Dataset, device: torch.device) -> int:
    recorded = manifest.verification
    if len(dataset.labels(recorded.split)) < recorded.count:
        raise DataCorrupt(
            f"Dataset {dataset.info.name} has {len(dataset.labels(recorded.split))} {recorded.split} images, "
            f"the teacher was verified on {recorded.count}.",
            "use the dataset that the teacher was verified on",
        )
    correct = predict(network, dataset, recorded.split, range(recorded.count), device=device).correct
    if 100 * abs(correct - recorded.correct) > TOLERANCE_PCT * recorded.count:
        raise DataCorrupt(
            f"Teacher {manifest.key[:12]} classifies {correct} of {recorded.count} {recorded.split} images of "
            f"{dataset.info.name} correctly, its manifest says {recorded.correct}.",
            "use the dataset and the weights of the manifest",
        )
    return correct
