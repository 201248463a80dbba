"""Regimes of soft labels against plain loops: what is labelled, what a store keeps, what training reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rd3.errors import BadValue, StoreError
from rd3.evaluation import packing, teaching
from rd3.evaluation.budget import image_steps, label_bytes
from rd3.evaluation.label_files import write_labels
from rd3.evaluation.posteval import Evaluation
from rd3.evaluation.stored import StoredLabels, mixture, restored, stored
from rd3.evaluation.views import Batch
from rd3.losses import LOSSES, LossTargets
from rd3.models import build_network
from rd3.protocol import EvalProtocol, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation
from rd3.seeding import generator
from rd3.values import without_neutral

CPU = torch.device("cpu")
UNIT = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
COUNT, CLASSES = 22, 10
IMAGES = torch.randint(256, (COUNT, 3, 32, 32), generator=generator(0, "pixels"), dtype=torch.uint8)
STEPS = ["flip", "cutmix"]


def protocol(count: int = COUNT, **fields) -> EvalProtocol:
    values = {"epochs": 5, "batch_size": 4, "temperature": 3.0, "augmentation": STEPS} | fields
    values = {name: value for name, value in values.items() if value is not None}
    return resolve_protocol("rd3", factor=1, same_network=True, set_size=count, overrides=values)


def evaluation(chosen: EvalProtocol) -> EvaluationRecipe:
    return EvaluationRecipe(
        set="s" * 64, protocol=chosen, student="resnet18", student_seed=0, data=Data(name="d", fingerprint="f"),
        classes="c", resolution=32, normalisation=UNIT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def teachers() -> list[torch.nn.Module]:
    networks = [build_network("convnet_w32", CLASSES, 32, UNIT, generator(seed, "init")) for seed in (0, 1)]
    return [teaching.frozen(network, "eval", "fp32", CPU) for network in networks]


def batches(chosen: EvalProtocol, teachers, images: torch.Tensor = IMAGES) -> list[Batch]:
    labels = torch.arange(len(images)) % CLASSES
    labelled = teaching.LabelledViews(images, labels, teachers, evaluation(chosen), "fp32")
    return [each.with_labels_of(chosen) for each in labelled]


def same_views(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and one.targets.lam == other.targets.lam


@pytest.mark.parametrize("pool", [1, 2])
def test_stored_labels_are_those_of_online_ones_rounded_to_fp16(teachers, pool):
    online, kept = (batches(protocol(soft_labels=when), teachers[:pool]) for when in ("online", "stored"))
    assert len(online) == len(kept) == 5 * 6
    for one, other in zip(online, kept, strict=True):
        assert same_views(one, other)
        assert torch.equal(other.targets.teacher_logits, one.targets.teacher_logits.half().float())
        assert not torch.equal(other.targets.teacher_logits, one.targets.teacher_logits)
    exact = batches(protocol(soft_labels="stored", label_dtype="fp32"), teachers[:pool])
    assert all(
        torch.equal(one.targets.teacher_logits, other.targets.teacher_logits)
        for one, other in zip(online, exact, strict=True)
    )


@pytest.mark.parametrize("hybrid", ["logits", "balanced", "softmax"])
def test_once_labels_each_image_without_augmentation_and_mixes_probabilities(teachers, hybrid):
    chosen = protocol(soft_labels="once", hybrid=hybrid)
    with torch.no_grad():
        each = [torch.cat([teacher(image[None] / 255) for image in IMAGES]) for teacher in teachers]
    if hybrid == "balanced":
        norms = [logits.norm() for logits in each]
        each = [logits * (sum(norms) / 2 / norm) for logits, norm in zip(each, norms, strict=True)]
    whole = sum(each) / 2
    if hybrid == "softmax":
        whole = 3.0 * ((each[0] / 3).softmax(1) / 2 + (each[1] / 3).softmax(1) / 2).log()
    expected = (whole.half().float() / 3.0).softmax(1)
    mixed = 0
    for one, online in zip(batches(chosen, teachers), batches(protocol(), teachers), strict=True):
        assert same_views(one, online) and torch.equal(one.targets.labels, one.rows % CLASSES)
        assert torch.equal(one.targets.labels_mixed, one.rows_mixed % CLASSES)
        found = (one.targets.teacher_logits / 3.0).softmax(1)
        lam = one.targets.lam
        for row, (base, other) in enumerate(zip(one.rows.tolist(), one.rows_mixed.tolist(), strict=True)):
            wanted = lam * expected[base] + (1 - lam) * expected[other]
            torch.testing.assert_close(found[row], wanted, rtol=1e-3, atol=1e-5)
            mixed += base != other and 0 < lam < 1
    assert mixed > 50


def test_once_without_mixing_is_a_table_of_logits_for_any_loss(teachers):
    chosen = protocol(soft_labels="once", loss="mse_gt", augmentation=["flip"], label_dtype="fp32", temperature=None)
    with torch.no_grad():
        table = teachers[0](IMAGES / 255)
    for batch in batches(chosen, teachers[:1]):
        torch.testing.assert_close(batch.targets.teacher_logits, table[batch.rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_has_mixed_probabilities_also_at_its_ends_and_with_absent_classes(share):
    logits = 4 * torch.randn(2, 6, CLASSES, generator=generator(0, "logits"))
    chosen = protocol(soft_labels="once", label_top_k=3)
    base, other = (teaching.as_stored(each, chosen) for each in logits)
    found = (mixture(base, other, share, 3.0) / 3).softmax(1)
    expected = share * (base / 3).softmax(1) + (1 - share) * (other / 3).softmax(1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_the_largest_logits_alone_give_the_loss_of_lpqld(temperature):
    """There, a softmax of the stored logits is scattered into zeros, and the loss is KLDivLoss on probabilities."""
    draws = generator(0, "logits")
    teacher, student = 5 * torch.randn(8, CLASSES, generator=draws), torch.randn(8, CLASSES, generator=draws)
    chosen = protocol(soft_labels="stored", label_top_k=4, temperature=temperature)
    kept = stored(teacher, chosen)
    assert kept.values.dtype == torch.float16 and kept.classes.dtype == torch.int16
    values, classes = teacher.topk(4, dim=1)
    probabilities = torch.zeros_like(teacher).scatter_(1, classes, (values.half().float() / temperature).softmax(1))
    read = restored(kept, CLASSES)
    assert torch.equal((read / temperature).softmax(1) == 0, probabilities == 0)
    student.requires_grad_()
    expected = F.kl_div((student / temperature).log_softmax(1), probabilities, reduction="batchmean")
    kl = LOSSES.get("kl")
    labels = torch.zeros(8, dtype=torch.int64)
    found = kl(student, LossTargets(read, labels, labels, 1.0), kl.Settings(temperature=temperature))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_classes_beyond_int16_are_read_as_unsigned():
    logits = torch.randn(2, 40_000, generator=generator(0, "logits"))
    kept = stored(logits, protocol(soft_labels="stored", label_top_k=500))
    found = restored(kept, 40_000).topk(500).indices
    assert int(found.max()) > 2**15
    for row, expected in zip(found, logits.half().topk(500).indices, strict=True):
        assert set(row.tolist()) == set(expected.tolist())


def test_reused_epochs_are_those_that_were_labelled(teachers):
    online = batches(protocol(), teachers[:1])
    first = [online[start : start + 6] for start in (0, 6)]
    chosen = protocol(soft_labels="stored", label_epochs=2, label_reuse="epochs", epochs=9)
    found = batches(chosen, teachers[:1])
    assert [batch.last for batch in found] == [place == 5 for _ in range(9) for place in range(6)]
    pick = generator(0, "label reuse")
    for epoch in range(9):
        source = first[int(torch.randint(2, (), generator=pick))]
        for batch, original in zip(found[6 * epoch : 6 * epoch + 6], source, strict=True):
            assert same_views(batch, original) and batch.epoch == batch.targets.epoch == epoch + 1
            assert torch.equal(batch.targets.teacher_logits, original.targets.teacher_logits.half().float())
            assert torch.equal(batch.rows, original.rows)


def test_reused_batches_are_full_ones_of_the_labelled_epochs(teachers):
    """22 images in batches of 4: five full batches and one of two an epoch."""
    full = [batch for batch in batches(protocol(), teachers[:1])[:12] if len(batch.images) == 4]
    found = batches(protocol(soft_labels="stored", label_epochs=2, epochs=9), teachers[:1])
    assert len(full) == 10 and len(found) == 9 * 5
    pick = generator(0, "label reuse")
    places = torch.cat([torch.randint(10, (5,), generator=pick) for _ in range(9)]).tolist()
    for number, (batch, place) in enumerate(zip(found, places, strict=True)):
        assert same_views(batch, full[place]) and batch.last == (number % 5 == 4)
        assert torch.equal(batch.targets.teacher_logits, full[place].targets.teacher_logits.half().float())


@pytest.mark.parametrize("count", [22, 24, 25, 4, 5])
@pytest.mark.parametrize(
    "fields",
    [
        {}, {"soft_labels": "stored"}, {"soft_labels": "stored", "label_dtype": "fp32"},
        {"soft_labels": "stored", "label_top_k": 3}, {"soft_labels": "stored", "label_epochs": 2},
        {"soft_labels": "stored", "label_epochs": 2, "label_reuse": "epochs", "label_top_k": 3},
        {"soft_labels": "once"}, {"soft_labels": "once", "label_top_k": 2, "label_dtype": "fp32"}, {"labels": "hard"},
    ],
)  # fmt: skip
def test_the_budget_is_what_is_seen_and_stored(count, fields, teachers):
    if fields.get("labels") == "hard":
        fields = fields | {"temperature": None}
    chosen = protocol(count, **fields)
    images = IMAGES.repeat(2, 1, 1, 1)[:count]
    found = batches(chosen, teachers[:1] if chosen.labels == "soft" else [], images)
    assert image_steps(chosen, count) == sum(len(batch.images) for batch in found)
    labels = [restored_row(row, chosen) for batch in labelled(chosen, images, found, teachers) for row in batch]
    expected = None if chosen.labels == "soft" and chosen.soft_labels == "online" else sum(labels)
    assert label_bytes(chosen, count, CLASSES) == expected


def labelled(chosen: EvalProtocol, images, found: list[Batch], teachers) -> list[torch.Tensor]:
    """Logits of what is labelled: nothing, the images, or the views of the first epochs."""
    if chosen.labels == "hard" or chosen.soft_labels == "online":
        return []
    if chosen.soft_labels == "once":
        return [teachers[0](images / 255)]
    plain = protocol(len(images), epochs=chosen.label_epochs or chosen.epochs)
    views = batches(plain, teachers[:1], images)
    whole = chosen.label_epochs is None or chosen.label_reuse == "epochs"
    return [batch.targets.teacher_logits for batch in views if whole or len(batch.images) == chosen.batch_size]


def restored_row(row: torch.Tensor, chosen: EvalProtocol) -> int:
    """Bytes of one label in the store."""
    return sum(part.numel() * part.element_size() for part in stored(row[None], chosen) if part is not None)


def test_views_of_the_paper_have_the_bytes_that_its_labels_are_said_to_have():
    """ImageNet-1K at IPC 10: 6 GB in fp16; 0.14 GB with 7 of 300 epochs (LPLD, with views: 5.67 and 0.14 GB)."""
    full = protocol(10_000, batch_size=100, epochs=300, soft_labels="stored")
    assert label_bytes(full, 10_000, 1000) == 6_000_000_000
    pruned = protocol(10_000, batch_size=100, epochs=300, soft_labels="stored", label_epochs=7)
    assert label_bytes(pruned, 10_000, 1000) == 140_000_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"soft_labels": "once", "loss": "mse_gt", "temperature": None}, "'once' labels mixed images by mixed proba"),
        ({"soft_labels": "once", "loss": "lskd"}, "which loss 'lskd' does not learn from alone"),
        ({"soft_labels": "stored", "loss": "nkd", "label_top_k": 3}, "label_top_k keeps probabilities at one temp"),
        ({"soft_labels": "once", "teacher_mode": "batch"}, "has no batches for teacher_mode 'batch'"),
        ({"soft_labels": "once", "label_epochs": 2}, "label_epochs needs soft_labels 'stored'"),
        ({"soft_labels": "stored", "label_epochs": 5}, "label_epochs is not below the 5 epochs of training"),
        ({"soft_labels": "stored", "label_reuse": "epochs"}, "label_reuse needs label_epochs"),
        ({"label_top_k": 3, "label_dtype": "fp32"}, "label_dtype and label_top_k need soft_labels 'once' or 'stored'"),
        ({"labels": "hard", "soft_labels": "once", "temperature": None}, "soft_labels 'once' needs soft labels"),
    ],
)  # fmt: skip
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(BadValue, match=message):
        protocol(**fields)


@pytest.mark.parametrize("loss", ["mse_gt", "lskd", "nkd", "dkd", "kl"])
def test_stored_logits_serve_every_loss(loss):
    assert protocol(loss=loss, soft_labels="stored", temperature=None).soft_labels == "stored"


def test_losses_that_take_probabilities_give_finite_gradients_on_mixed_and_cut_labels():
    draws = generator(0, "logits")
    teacher, student = 9 * torch.randn(2, 8, CLASSES, generator=draws), torch.randn(8, CLASSES, generator=draws)
    labels = torch.arange(8)
    for name in LOSSES:
        loss = LOSSES.get(name)
        if loss.of_teacher == "softmax":
            chosen = protocol(loss=name, soft_labels="once", label_top_k=2)
            base, other = (teaching.as_stored(each, chosen) for each in teacher)
            targets = LossTargets(mixture(base, other, 0.5, 3.0), labels, labels, 0.5, epoch=20)
            own = student.clone().requires_grad_()
            loss(own, targets, loss.Settings(temperature=3.0)).backward()
            assert own.grad.isfinite().all() and own.grad.abs().sum() > 0


def test_the_defaults_are_in_no_key():
    added = {"soft_labels", "label_dtype", "label_top_k", "label_epochs", "label_reuse"}
    assert not added & without_neutral(protocol()).keys()
    assert without_neutral(protocol(soft_labels="stored", label_epochs=2)).keys() & added == {
        "soft_labels", "label_epochs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "equal"),
    [
        ({"soft_labels": "stored"}, True), ({"soft_labels": "stored", "label_top_k": 3}, True),
        ({"soft_labels": "once"}, False), ({"soft_labels": "stored", "label_epochs": 2}, False),
    ],
)  # fmt: skip
def test_regimes_share_views_where_pixels_and_logits_are_equal(fields, equal):
    online, other = (packing.Views.of(evaluation(protocol(**each))) for each in ({}, fields))
    assert (online.key == other.key) is equal
    reused = [protocol(soft_labels="stored", label_epochs=2, label_reuse=how) for how in ("batches", "epochs")]
    assert len({packing.Views.of(evaluation(each)).key for each in reused}) == 2


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {"soft_labels": "once"}, {"soft_labels": "once", "label_top_k": 3, "label_dtype": "fp32"},
        {"soft_labels": "stored"}, {"soft_labels": "stored", "label_top_k": 3},
        {"soft_labels": "stored", "label_epochs": 2},
        {"soft_labels": "stored", "label_epochs": 2, "label_reuse": "epochs"},
    ],
)  # fmt: skip
def test_label_files_have_the_bytes_that_are_stated_and_the_labels_of_training(fields, pool, teachers, tmp_path):
    chosen, labels = protocol(precision="fp32", **fields), torch.arange(COUNT) % CLASSES
    networks = [build_network("convnet_w32", CLASSES, 32, UNIT, generator(seed, "init")) for seed in range(pool)]
    written = write_labels(Evaluation(evaluation(chosen), IMAGES, labels, networks), tmp_path / "out", device="cpu")
    counted = subprocess.run(
        ["du", "--apparent-size", "--bytes", *sorted(map(str, (tmp_path / "out" / "labels").iterdir()))],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    sizes = [int(line.split()[0]) for line in counted]
    assert sum(sizes) == written == label_bytes(chosen, COUNT, CLASSES)

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["label_bytes"] == written
    read = {name: array(tmp_path / "out" / name, shape, manifest["dtype"]) for name, shape in manifest["files"].items()}
    names = sorted({name.split("/")[1].split(".")[0] for name in read})
    stores = {}
    for name in names:
        classes = read.get(f"labels/{name}.classes")
        stores[name] = restored(StoredLabels(read[f"labels/{name}.logits"], classes), CLASSES)
    found = batches(chosen, teachers[:pool])
    if names == ["images"]:
        for batch in found:
            base, other = (stores["images"][rows] for rows in (batch.rows, batch.rows_mixed))
            assert torch.equal(batch.targets.teacher_logits, mixture(base, other, batch.targets.lam, 3.0))
        return
    labels_of = {}
    for name in names:
        size = chosen.batch_size
        for rows, logits in zip(read[f"rows/{name}.rows"].split(size), stores[name].split(size), strict=True):
            labels_of[tuple(rows.tolist())] = logits
    assert len(names) == (chosen.label_epochs or chosen.epochs)
    for batch in found:
        assert torch.equal(batch.targets.teacher_logits, labels_of[tuple(batch.rows.tolist())])


def array(path: Path, shape: list[int], dtype: str) -> torch.Tensor:
    types = {".logits": {"fp16": "<f2", "fp32": "<f4"}[dtype], ".classes": "<i2", ".rows": "<i4"}
    return torch.from_numpy(np.fromfile(path, dtype=types[path.suffix]).reshape(shape))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "has on-the-fly labels, which are not stored"), ({"labels": "hard", "temperature": None}, "has hard labels")],
)
def test_labels_that_are_not_stored_have_no_files(fields, message, tmp_path):
    one = Evaluation(evaluation(protocol(**fields)), IMAGES, torch.arange(COUNT) % CLASSES)
    with pytest.raises(BadValue, match=message):
        write_labels(one, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(teachers, tmp_path, monkeypatch):
    def full(self: Path, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    one = Evaluation(evaluation(protocol(soft_labels="once")), IMAGES, torch.arange(COUNT) % CLASSES, teachers)
    with pytest.raises(StoreError, match=r"^Cannot write to .*out: No space left on device\. Fix: free space"):
        write_labels(one, tmp_path / "out", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_label_files_replace_nothing(tmp_path):
    (tmp_path / "kept").touch()
    one = Evaluation(evaluation(protocol(soft_labels="once")), IMAGES, torch.arange(COUNT) % CLASSES)
    with pytest.raises(BadValue, match="is not an empty folder"):
        write_labels(one, tmp_path, device="cpu")


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES.get(name).labels == "soft"])
def test_losses_declare_what_they_use_of_the_teacher(name):
    """With other logits of the same softmax at the loss's temperature."""
    loss, draws = LOSSES.get(name), generator(0, "logits")
    teacher, student = 3 * torch.randn(6, CLASSES, generator=draws), torch.randn(6, CLASSES, generator=draws)
    settings, labels = loss.Settings(), torch.arange(6)
    temperature = getattr(settings, "temperature", 1.0)
    for other in (temperature * (teacher / temperature).log_softmax(1), mixture(teacher, teacher, 0.3, temperature)):
        values = [loss(student, LossTargets(logits, labels, labels, 1.0, 20), settings) for logits in (teacher, other)]
        same = torch.allclose(*values, rtol=1e-4)
        assert same or loss.of_teacher == "logits"
    assert name != "mse_gt" or not same
