"""A set's own soft labels: what a loss sees of them, against formulas, plain loops and the regime ``once``."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rd3.errors import BadValue
from rd3.evaluation import posteval, student, teaching
from rd3.evaluation.budget import label_bytes
from rd3.evaluation.label_files import write_labels
from rd3.evaluation.packing import Views
from rd3.evaluation.posteval import Evaluation, evaluate, train_pack
from rd3.evaluation.teaching import FLOOR, OwnLabels, own_logits
from rd3.losses import LOSSES, LossTargets
from rd3.preset_rules import Case
from rd3.protocol import EvalProtocol, applicable_values, preset, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe
from rd3.seeding import generator, scoped
from rd3.soft_labels import SoftLabels
from rd3.testing import ToyDataset
from rd3.values import without_neutral

CPU = torch.device("cpu")
TOY = ToyDataset(side=16)
C, COUNT = 3, 12
IMAGES, LABELS = TOY.images("train", range(COUNT)), torch.arange(COUNT) % C
LOGITS = 4 * F.one_hot(LABELS, C) + torch.randn(COUNT, C, generator=generator(0, "logits"))
P = LOGITS.softmax(1)
TAUGHT = [name for name in LOSSES if LOSSES.get(name).labels == "soft"]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, C)

    def forward(self, pixels):
        return self.head(F.relu(self.norm(self.conv(pixels - 0.5))).mean((2, 3)))


def tiny() -> Tiny:
    with scoped(generator(0, "init")):
        return Tiny()


@pytest.fixture(autouse=True)
def trained(monkeypatch) -> list[nn.Module]:
    """The students that are built, which are small."""
    built: list[nn.Module] = []

    def build(*_arguments):
        built.append(tiny())
        return built[-1]

    monkeypatch.setattr(student, "build_network", build)
    return built


def protocol(**fields) -> EvalProtocol:
    values = {
        "epochs": 3,
        "batch_size": 4,
        "lr": 0.01,
        "precision": "fp32",
        "augmentation": ["flip", "cutmix"],
    } | fields
    values = {"soft_labels": "own"} | values
    return resolve_protocol("rd3", factor=1, same_network=True, set_size=COUNT, overrides=values)


def recipe(**fields) -> EvaluationRecipe:
    return EvaluationRecipe(
        set="s" * 64, protocol=protocol(**fields), student="tiny", student_seed=0,
        data=Data(name="toy", fingerprint="f"), classes=TOY.info.classes, resolution=16,
        normalisation=TOY.info.normalisation,
    )  # fmt: skip


def run(own: SoftLabels | None, teachers=(), **fields):
    [found] = train_pack([Evaluation(recipe(**fields), IMAGES, LABELS, teachers, soft_labels=own)], TOY, device="cpu")
    if isinstance(found, Exception):
        raise found
    return found


def outcome(result) -> dict:
    plain = dataclasses.asdict(result)
    return {name: value for name, value in plain.items() if name not in ("wall_s", "process_s", "peak_mib")}


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


@pytest.fixture
def teacher() -> nn.Module:
    network = tiny()
    network.head.weight.data *= 8
    return network.eval()


def answers(network: nn.Module) -> torch.Tensor:
    """Logits of the images without augmentation, in one batch as the regime ``once`` asks for them."""
    with torch.no_grad():
        return teaching.frozen(network, "eval", "fp32", CPU)(IMAGES / 255)


@pytest.mark.parametrize("label_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "fields",
    [
        {}, {"loss": "dkd"}, {"temperature": 1.0}, {"augmentation": ["resized_crop", "flip", "mixup"]},
        *({"loss": loss, "augmentation": ["flip"]} for loss in TAUGHT),
    ],
)  # fmt: skip
def test_own_logits_of_a_teacher_give_the_bits_of_once(fields, label_dtype, teacher, trained):
    own = SoftLabels(answers(teacher).to({"fp32": torch.float32, "fp16": torch.float16}[label_dtype]), "logits")
    once = run(None, [teacher], soft_labels="once", label_dtype=label_dtype, **fields)
    found = run(own, **fields)
    assert outcome(found) == outcome(once)
    assert torch.equal(weights(trained[0]), weights(trained[1]))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_equals_a_plain_loop(kind, trained):
    """KL at temperature 2 on the labels of the images, one batch at a time, with torch's AdamW."""
    values = LOGITS if kind == "logits" else P
    result = run(SoftLabels(values, kind), augmentation=[], temperature=2.0, weight_decay_on="all")
    learner = tiny()
    optimizer = torch.optim.AdamW(learner.parameters(), betas=(0.9, 0.999), weight_decay=0.01)
    order, soft = generator(0, "order"), (LOGITS.double() / 2).softmax(1).float()
    learner.train()
    for epoch in range(3):
        total = 0.0
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + np.cos(np.pi * epoch / 3)) / 2
        for rows in torch.randperm(COUNT, generator=order).split(4):
            optimizer.zero_grad()
            loss = F.kl_div((learner(IMAGES[rows] / 255) / 2).log_softmax(1), soft[rows], reduction="batchmean")
            loss.backward()
            optimizer.step()
            total += loss.item() / 3
        assert result.curve[epoch]["loss"] == pytest.approx(total, rel=1e-4)
    torch.testing.assert_close(weights(trained[-1]), weights(learner), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_mixed_images_have_mixed_probabilities(kind):
    chosen = recipe(temperature=3.0)
    own = OwnLabels(SoftLabels(LOGITS if kind == "logits" else P, kind), CPU)
    tempered, mixed = (LOGITS / 3).softmax(1), 0
    for each in teaching.LabelledViews(IMAGES, LABELS, [], chosen, "fp32", own):
        batch = each.with_labels_of(chosen.protocol)
        found, lam = (batch.targets.teacher_logits / 3).softmax(1), batch.targets.lam
        torch.testing.assert_close(found, lam * tempered[batch.rows] + (1 - lam) * tempered[batch.rows_mixed])
        mixed += int((batch.rows != batch.rows_mixed).sum())
    assert mixed > 10


def sparse() -> torch.Tensor:
    """Probabilities with zeros."""
    p = P.clone()
    p[::2, 0] = 0
    return p / p.sum(1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_probabilities_are_tempered_and_zeros_stay(temperature, dtype):
    p = sparse().to(dtype)
    found = (own_logits(SoftLabels(p, "probabilities"), softmax_only=True) / temperature).softmax(1)
    powers = p.double() ** (1 / temperature)
    torch.testing.assert_close(found, (powers / powers.sum(1, keepdim=True)).float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(found == 0, p == 0)


def test_at_temperature_1_the_divergence_is_that_of_the_probabilities():
    p = sparse()
    logits = torch.randn(COUNT, C, generator=generator(1, "student"), requires_grad=True)
    expected = F.kl_div(logits.log_softmax(1), p, reduction="batchmean")
    kl = LOSSES.get("kl")
    targets = LossTargets(own_logits(SoftLabels(p, "probabilities"), softmax_only=True), LABELS, LABELS, 1.0)
    found = kl(logits, targets, kl.Settings(temperature=1.0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


@pytest.mark.parametrize("name", TAUGHT)
def test_probabilities_of_a_softmax_give_the_loss_of_its_logits(name):
    """At every temperature, except for the squared error, which sees the constant of each image."""
    loss, logits = LOSSES.get(name), torch.randn(COUNT, C, generator=generator(1, "student"))
    found = own_logits(SoftLabels(LOGITS.double().softmax(1), "probabilities"), loss.of_teacher == "softmax")
    given = LOGITS - LOGITS.logsumexp(1, keepdim=True) if name == "mse_gt" else LOGITS
    values = [loss(logits, LossTargets(one, LABELS, LABELS, 1.0, 20), loss.Settings()) for one in (found, given)]
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TAUGHT)
def test_every_loss_trains_on_probabilities_with_zeros(name, trained):
    own = SoftLabels(sparse(), "probabilities")
    run(own, loss=name, augmentation=["flip"])
    assert torch.isfinite(weights(trained[-1])).all() and not torch.equal(weights(trained[-1]), weights(tiny()))
    if LOSSES.get(name).of_teacher == "logits":
        assert own_logits(own, softmax_only=False).min() == pytest.approx(np.log(FLOOR), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_label_bytes_are_those_of_the_set_and_of_its_files(dtype, tmp_path):
    own = SoftLabels(LOGITS.to(dtype), "logits")
    expected = COUNT * C * own.values.element_size()
    assert run(own).label_bytes == label_bytes(protocol(), COUNT, C, own.nbytes) == expected
    one = Evaluation(recipe(), IMAGES, LABELS, soft_labels=own)
    assert write_labels(one, tmp_path / "out", device="cpu") == expected
    counted = subprocess.run(
        ["du", "--apparent-size", "--bytes", tmp_path / "out/labels/images.logits"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(counted.split()[0]) == expected
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["dtype"] == str(dtype).removeprefix("torch.") and manifest["label_bytes"] == expected
    assert manifest["files"] == {"labels/images.logits": [COUNT, C], "rows/images.rows": [COUNT]}
    raw = torch.frombuffer(bytearray((tmp_path / "out/labels/images.logits").read_bytes()), dtype=dtype)
    assert torch.equal(raw.reshape(COUNT, C), own.values)


def test_labels_of_the_set_count_where_the_student_learns_from_them(teacher):
    own = SoftLabels(LOGITS, "logits")
    assert run(own, [teacher], soft_labels="online").label_bytes is None
    assert run(own, [teacher], soft_labels="once").label_bytes == COUNT * C * 2
    assert run(own, labels="hard", soft_labels="online", loss="ce").label_bytes == 0


def test_a_pack_with_other_labels_changes_none(trained, teacher):
    own = SoftLabels(P, "probabilities")
    hard = {"labels": "hard", "soft_labels": "online", "loss": "ce"}
    once = recipe(soft_labels="once").model_copy(update={"teachers": ("t" * 64,)})
    recipes = [recipe(), recipe(loss="dkd"), recipe(**hard), once]
    pack = [
        Evaluation(one, IMAGES, LABELS, [teacher] if one.protocol.taught else [], soft_labels=own) for one in recipes
    ]
    alone = [outcome(train_pack([one], TOY, device="cpu")[0]) for one in pack]
    assert [outcome(one) for one in train_pack(pack, TOY, device="cpu")] == alone
    keys = [Views.of(one).key for one in recipes]
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(None), "has soft_labels 'own', but the set has no soft labels of its own"),
        (lambda: run(SoftLabels(LOGITS[:5], "logits")), r"has soft labels \(5, 3\), expected \(12, 3\)"),
        (lambda: run(SoftLabels(LOGITS, "logits"), [tiny()]), "The labels are the set's own, but a teacher was given"),
        (lambda: protocol(loss="mse_gt"), "'own' labels mixed images by mixed probabilities, which loss 'mse_gt'"),
        (lambda: protocol(label_dtype="fp32"), "label_dtype needs soft_labels 'once' or 'stored'"),
        (lambda: protocol(label_top_k=2), "label_top_k needs soft_labels 'once' or 'stored'"),
        (lambda: protocol(labels="hard", loss="ce"), "soft_labels 'own' needs soft labels"),
    ],
)  # fmt: skip
def test_what_is_refused(call, message, trained):
    with pytest.raises(BadValue, match=message):
        call()


def a_set(**fields) -> SetRecipe:
    values = {
        "method": "imported", "version": 1, "settings": {}, "data": Data(name="toy", fingerprint="f"),
        "classes": TOY.info.classes, "resolution": 16, "ipc": 4, "content": "c" * 64,
    }  # fmt: skip
    return SetRecipe(**values | fields)


def of(synthetic: SetRecipe, chosen: EvalProtocol) -> EvaluationRecipe:
    return EvaluationRecipe.of(
        synthetic, teachers=[], protocol=chosen, student="tiny", student_seed=0, normalisation=TOY.info.normalisation
    )


def test_the_recipe_has_no_teacher_and_a_key_of_its_own():
    labelled = a_set(settings={"soft_label_kind": "logits"})
    planned = of(labelled, protocol())
    assert planned.teachers == () and planned.parents() == (("set", labelled.key),)
    assert without_neutral(planned)["protocol"]["soft_labels"] == "own"
    assert len({planned.key, of(labelled, protocol(labels="hard", soft_labels="online", loss="ce")).key}) == 2
    for without in (a_set(), a_set(content=None, settings={"soft_label_kind": "logits"})):
        assert without.soft_label_kind is None
        with pytest.raises(BadValue, match="the set has no soft labels of its own"):
            of(without, protocol())


def test_searches_leave_out_fields_of_stored_labels():
    values = {"soft_labels": "own", "label_top_k": 3, "label_dtype": "fp32", "label_epochs": 2}
    assert applicable_values(preset("rd3"), Case(True, "tiny", "toy", C, 4), values) == {"soft_labels": "own"}


def test_evaluate_takes_soft_labels(trained):
    options = {"epochs": 2, "precision": "fp32", "batch_size": 4, "zeta": 1.0, "augmentation": ["flip", "cutmix"]}
    for own in (SoftLabels(LOGITS, "logits"), SoftLabels(P, "probabilities")):
        found = evaluate(IMAGES, LABELS, TOY, soft_labels=own.values, **options)
        assert outcome(found) == outcome(run(own, epochs=2, lr=1e-3))
    with pytest.warns(UserWarning, match="stated as logits, but their rows sum to 1"):
        swapped = evaluate(IMAGES, LABELS, TOY, soft_labels=P, soft_label_kind="logits", **options)
    assert outcome(swapped) != outcome(found)


def test_evaluate_gives_other_soft_labels_another_key(monkeypatch):
    keys = []

    def train_none(pack, *_rest, **_options):
        keys.append(pack[0].recipe.set)
        return [None]

    monkeypatch.setattr(posteval, "train_pack", train_none)
    for values in (None, LOGITS, LOGITS + 1, P):
        evaluate(IMAGES, LABELS, TOY, soft_labels=values)
    with pytest.warns(UserWarning, match="stated as logits"):
        evaluate(IMAGES, LABELS, TOY, soft_labels=P, soft_label_kind="logits")
    assert len(set(keys)) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft_labels": LOGITS, "teacher": tiny()}, "Both a teacher and soft_labels are given"),
        ({"soft_labels": LOGITS.roll(1, 1)}, "The columns of soft_labels look permuted"),
        ({"soft_labels": "own"}, "the set has no soft labels of its own"),
        ({"soft_labels": "once"}, "soft_labels 'once' are those of a teacher, and none was given"),
        ({"soft_label_kind": "logits"}, "there are no soft labels"),
    ],
)  # fmt: skip
def test_what_evaluate_refuses(options, message):
    with pytest.raises(Exception, match=message) as caught:
        evaluate(IMAGES, LABELS, TOY, **copy.copy(options))
    assert caught.value.exit_code == 2
