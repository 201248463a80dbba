"""What must hold on a CUDA device: the CPU's views, finite losses, the same numbers twice, work that is taken up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rd3 import teacher
from rd3.augment import crop_and_resize, crop_boxes, to_unit
from rd3.device import usable_device
from rd3.errors import BadValue
from rd3.evaluation import graphed
from rd3.evaluation.posteval import Evaluation, evaluate, train_pack
from rd3.evaluation.views import Batch, views
from rd3.losses import LossTargets
from rd3.models import NETWORKS, register_network
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, TeacherRecipe, TeacherTraining
from rd3.seeding import generator
from rd3.synthesis import synthesize
from rd3.synthetic_set import SyntheticSet
from rd3.testing import ToyDataset, toy_teacher, trial_recipe
from rd3.values import digest

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
TOY = ToyDataset(per_class=12)


@pytest.fixture
def dropout():
    """The network ``dropout``, which draws from torch's own generator in every step."""

    @register_network("dropout", summary="for a test", resolutions={32: ""})
    def small(num_classes: int, resolution: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
            nn.Dropout(), nn.Linear(8 * 16, num_classes),
        )  # fmt: skip

    yield
    del NETWORKS._things["dropout"]


def pixels(count: int = 50, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), generator=generator(0, "pixels"), dtype=torch.uint8)


MOVING = ["pad_crop", {"patch_shuffle": {"grid": 2}}, "flip", "cutmix"]


def batches(device: str, ahead: int) -> list[Batch]:
    """Views whose pixels are only moved, of two epochs."""
    fields = {"epochs": 2, "batch_size": 12, "augmentation": MOVING}
    protocol = resolve_protocol("rd3", factor=1, same_network=True, set_size=50, overrides=fields)
    labels = torch.arange(50, device=device) % 10
    return [batch for some in views(pixels().to(device), labels, protocol, 0, ahead) for batch in some.batches]


@pytest.mark.parametrize("ahead", [1, 7])
def test_views_that_move_pixels_are_those_of_the_cpu_to_the_bit(ahead):
    for one, other in zip(batches(DEVICE, ahead), batches("cpu", 1), strict=True):
        assert torch.equal(one.images.cpu(), other.images) and one.targets.lam == other.targets.lam
        assert torch.equal(one.targets.labels_mixed.cpu(), other.targets.labels_mixed)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_resized_crop_is_that_of_the_cpu_up_to_rounding(antialias):
    """Two fp32 products with weights that sum to one: each rounds by at most a few units in the last place of 1."""
    boxes = crop_boxes(50, 32, 32, 0.25, generator(2, "crop"))
    crop = [
        crop_and_resize(to_unit(images), boxes, 32, antialias=antialias).cpu()
        for images in (pixels(), pixels().to(DEVICE))
    ]
    torch.testing.assert_close(crop[1], crop[0], rtol=0, atol=32 * torch.finfo(torch.float32).eps)


def score(**options):
    """Two epochs on real images of the toy dataset under its teacher."""
    labels = torch.from_numpy(TOY.labels("train").copy())
    images = TOY.images("train", range(len(labels)))
    usual = {"epochs": 2, "batch_size": 10, "student": "resnet18_w16", "teacher": toy_teacher(TOY).to(DEVICE)}
    return evaluate(images, labels, TOY, device=DEVICE, allow_chance=True, **usual | options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_post_evaluation_ends_with_a_finite_loss_and_repeats_to_the_bit(precision):
    first, second = (score(precision=precision) for _run in range(2))
    assert math.isfinite(first.final_loss) and first.epochs_run == 2
    assert first.curve == second.curve
    assert first.per_class_correct == second.per_class_correct


def counted(replay, calls: list[int]):
    def counting(self, images, targets):
        calls.append(len(images))
        return replay(self, images, targets)

    return counting


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "fp32"},
        {"precision": "bf16", "loss": {"mse_gt": {"gamma": 0.1}}, "extra_student_forward": True},
        {"precision": "bf16", "teacher": None},
        {"precision": "fp32", "loss": {"dkd": {"ramp_epochs": 3}}},
        {"precision": "bf16", "student": "dropout"},
        {"precision": "fp32", "optimizer": "sgd", "lr": 0.01},
        {"precision": "bf16", "ema": 0.9, "weight_decay_on": "all", "test_epochs": [3]},
        {"precision": "fp32", "soft_labels": "once", "label_top_k": 2},
        {"precision": "bf16", "soft_labels": "stored", "label_epochs": 3, "label_reuse": "epochs"},
        {"precision": "fp32", "accumulation_steps": 2, "test_resize": 36},
    ],
    ids=lambda fields: ", ".join(map(str, fields.values())),
)
def test_a_graph_gives_what_its_kernels_give_one_by_one(fields, dropout, monkeypatch):
    """36 images in batches of 16: two of one size and a smaller one, in four epochs."""
    fields = {"epochs": 4, "batch_size": 16, **fields}
    replays = []
    monkeypatch.setattr(graphed._Captured, "replay", counted(graphed._Captured.replay, replays))
    by_graph = score(**fields)
    taken = len(replays)
    draws = fields.get("student") == "dropout"
    assert taken == (0 if draws else 4 * 3 - 2 * graphed.PLAIN_STEPS)
    monkeypatch.setattr(graphed, "PLAIN_STEPS", 1_000_000)
    one_by_one = score(**fields)
    assert len(replays) == taken
    assert by_graph.curve == one_by_one.curve and by_graph.per_class_correct == one_by_one.per_class_correct


def test_a_step_that_waits_for_the_device_is_never_captured():
    """It goes on kernel by kernel, every step once."""
    taken = torch.zeros((), device=DEVICE)

    def waiting(images, targets):
        taken.add_(1)
        assert float(images.sum()) >= 0
        return taken.clone()

    lam = torch.ones((), device=DEVICE)
    targets = LossTargets(None, *(torch.zeros(4, dtype=torch.int64, device=DEVICE) for _ in range(2)), lam, lam)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        steps = graphed.GraphedSteps(waiting)
        losses = [steps(torch.rand(4, 3, 8, 8, device=DEVICE), targets) for _step in range(6)]
    stream.synchronize()
    assert [float(loss) for loss in losses] == [1, 2, 3, 4, 5, 6]


def test_students_side_by_side_train_as_each_alone(dropout):
    """Each on its own stream and with its own graphs; two have dropout."""
    labels = torch.from_numpy(TOY.labels("train").copy())
    images, teacher = TOY.images("train", range(len(labels))), toy_teacher(TOY).to(DEVICE)
    students = [("resnet18_w16", 0), ("resnet18_w16", 1), ("dropout", 0), ("dropout", 1)]
    recipes = [evaluation_recipe(student, seed) for student, seed in students]
    together = train_pack([Evaluation(one, images, labels, [teacher]) for one in recipes], TOY, device=DEVICE)
    for one, beside in zip(recipes, together, strict=True):
        [alone] = train_pack([Evaluation(one, images, labels, [teacher])], TOY, device=DEVICE)
        assert alone.curve == beside.curve and alone.per_class_correct == beside.per_class_correct


def evaluation_recipe(student: str, seed: int) -> EvaluationRecipe:
    fields = {"epochs": 8, "batch_size": 16, "precision": "fp32"}
    protocol = resolve_protocol("rd3", factor=1, same_network=student == "resnet18_w16", set_size=36, overrides=fields)
    return EvaluationRecipe(
        set=digest("set"), teachers=(digest("teacher"),), protocol=protocol, student=student, student_seed=seed,
        data=Data(name="toy", fingerprint=TOY.fingerprint), classes=TOY.info.classes, resolution=TOY.info.resolution,
        normalisation=TOY.info.normalisation,
    )  # fmt: skip


def a_set(folder: Path, seed: int) -> SyntheticSet:
    recipe = trial_recipe("sre2l", TOY, 1, set_seed=seed)
    synthesize(recipe, TOY, (toy_teacher(TOY).to(DEVICE),), folder, device=DEVICE)
    return SyntheticSet.open(folder)


def test_a_recovered_set_repeats_to_the_bit_and_follows_its_seed(tmp_path):
    first, second, other = (a_set(tmp_path / str(run), seed) for run, seed in enumerate((0, 0, 1)))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


class Cut(Exception):
    """The training is interrupted here."""


def test_an_interrupted_teacher_is_taken_up_to_the_bit(tmp_path):
    training = TeacherTraining(epochs=3, batch_size=12, lr=0.02, momentum=0.9, weight_decay=5e-4, crop="pad", flip=True)
    recipe = TeacherRecipe(
        data=Data(name="toy", fingerprint=TOY.fingerprint), classes=TOY.info.classes, network="resnet18_w16",
        resolution=32, normalisation=TOY.info.normalisation, training=training, precision="fp32", seed=0,
    )  # fmt: skip

    def cut(fraction: float, _note: str) -> None:
        if fraction > 0.5:
            raise Cut

    straight = teacher.train(recipe, TOY, tmp_path / "straight", device=DEVICE)
    with pytest.raises(Cut):
        teacher.train(recipe, TOY, tmp_path / "cut", device=DEVICE, progress=cut)
    taken_up = teacher.train(recipe, TOY, tmp_path / "cut", device=DEVICE)
    assert taken_up["final_loss"] == straight["final_loss"]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("straight", "cut")]
    assert weights[0] == weights[1]


def test_a_device_that_is_not_there_is_refused():
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BadValue, match=f"Device '{beyond}' is not available"):
        usable_device(beyond)
