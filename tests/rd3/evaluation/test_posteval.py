from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from rd3 import augment, device
from rd3.errors import BadValue, ClassOrderError, Diverged
from rd3.evaluation import posteval, student, teaching
from rd3.evaluation.views import views
from rd3.protocol import EvalProtocol, Preset, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, Normalisation
from rd3.seeding import generator, scoped

C, SIDE = 3, 8
PLAIN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def patterns(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """(N, 3, 8, 8) uint8: noise with one bright colour channel, which is the class."""
    pixels = torch.randint(0, 120, (len(labels), 3, SIDE, SIDE), generator=generator(seed, "noise"))
    pixels[torch.arange(len(labels)), labels] += 100
    return pixels.to(torch.uint8)


class Fake:
    """Three classes that a student can tell apart; counts how often each test image is read."""

    fingerprint = "f" * 8

    def __init__(self, count: int = 300):
        self.info = SimpleNamespace(
            name="fake",
            num_classes=C,
            class_ids=("a", "b", "c"),
            classes="c" * 64,
            resolution=SIDE,
            factor=1,
            normalisation=PLAIN,
        )
        self._labels = np.arange(count) % C
        self._labels.setflags(write=False)
        self._images = patterns(torch.tensor(self._labels), seed=1)
        self.read = np.zeros(count, dtype=int)
        self.splits: set[str] = set()

    def labels(self, split):
        return self._labels

    def images(self, split, indices):
        self.splits.add(split)
        self.read[indices] += 1
        return self._images[list(indices)]


class Tiny(nn.Module):
    """A small network with everything that matters here: batch norm, dropout, matrices and vectors."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, C)

    def forward(self, pixels):
        return self.head(self.drop(F.relu(self.norm(self.conv(pixels - 0.5))).mean((2, 3))))


class Oracle(nn.Module):
    """A teacher that knows the rule; notes what it sees, and can break at a given call (the first is the check)."""

    def __init__(self, breaks_at: int = 0):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.breaks_at, self.calls = breaks_at, 0

    def forward(self, pixels):
        logits = 20 * self.norm(pixels).mean((2, 3))
        if isinstance(pixels, torch.fx.Proxy):  # nobody looks: its graph is traced
            return logits
        SEEN["teacher"].append(pixels.detach().clone())
        self.calls += 1
        return logits * float("nan") if self.calls == self.breaks_at else logits


SEEN: dict[str, list[torch.Tensor]] = {}


@pytest.fixture(autouse=True)
def tiny_students(monkeypatch):
    """Students are small; the last one built can be looked at, and what it saw in training too."""
    SEEN.update(teacher=[], student=[])
    built = SimpleNamespace(student=None, dropout=0.0)

    def build(name, num_classes, resolution, normalisation, stream):
        with scoped(stream):
            built.student = Tiny(built.dropout)
        built.student.register_forward_pre_hook(
            lambda module, inputs: SEEN["student"].append(inputs[0].detach().clone()) if module.training else None
        )
        return built.student

    monkeypatch.setattr(student, "build_network", build)
    return built


RULE = Preset(
    name="test",
    source="this file",
    all={
        **{"epochs": 3, "batch_size": 4, "zeta": 1.0, "lr": 0.01, "precision": "fp32"},
        "augmentation": ["patch_shuffle", "resized_crop", "flip", "cutmix"],
    },
)


def protocol(*, factor: int = 1, **fields) -> EvalProtocol:
    return resolve_protocol(RULE, factor=factor, same_network=True, set_size=10**9, overrides=fields)


def recipe(*, seed: int = 0, **fields) -> EvaluationRecipe:
    return EvaluationRecipe(
        set="s" * 64,
        protocol=protocol(**fields),
        student="tiny",
        student_seed=seed,
        data=Data(name="fake", fingerprint="f" * 8),
        classes="c" * 64,
        resolution=SIDE,
        normalisation=PLAIN,
    )


LABELS = torch.arange(12) % C
IMAGES = patterns(LABELS, seed=2)


def run(one: EvaluationRecipe, teachers=None, images=IMAGES, labels=LABELS, dataset=None, **options):
    if teachers is None:
        teachers = [Oracle()] if one.protocol.labels == "soft" else []
    evaluation = posteval.Evaluation(one, images, labels, teachers, **options)
    [outcome] = posteval.train_pack([evaluation], dataset or Fake(), device="cpu")
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def outcome(result: posteval.EvalResult) -> dict:
    """All that must repeat."""
    plain = dataclasses.asdict(result)
    return {name: value for name, value in plain.items() if name not in ("wall_s", "process_s", "peak_mib")}


def test_a_seed_repeats_and_another_differs():
    first, again, other = run(recipe(seed=1)), run(recipe(seed=1)), run(recipe(seed=2))
    assert outcome(first) == outcome(again)
    assert [row["loss"] for row in first.curve] != [row["loss"] for row in other.curve]


@pytest.mark.parametrize(
    "fields", [{}, {"labels": "hard", "loss": "ce"}, {"loss": "mse_gt"}, {"optimizer": "sgd", "lr": 1.0}]
)
def test_the_student_learns(fields):
    result = run(recipe(epochs=25, **fields))
    assert result.top1_pct > 60
    assert result.correct == sum(result.per_class_correct)
    assert result.tested == 300 and result.top1_pct == pytest.approx(result.correct / 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"soft_labels": "once"}, {"soft_labels": "stored"}, {"soft_labels": "stored", "label_top_k": 2},
        {"soft_labels": "stored", "label_epochs": 3},
        {"soft_labels": "stored", "label_epochs": 3, "label_reuse": "epochs"},
    ],
)  # fmt: skip
def test_regimes_of_soft_labels_teach_and_a_pack_of_them_changes_none(fields):
    """In one pack with on-the-fly labels, whose views some of them share."""
    chosen = [recipe(epochs=25, **each) for each in (fields, {})]
    pack = [posteval.Evaluation(one, IMAGES, LABELS, [Oracle()]) for one in chosen]
    together = posteval.train_pack(pack, Fake(), device="cpu")
    for one, result in zip(chosen, together, strict=True):
        assert outcome(result) == outcome(run(one)) and result.top1_pct > 60
    regime, online = together
    assert online.image_steps == 25 * 12 and online.label_bytes is None
    assert regime.image_steps == 25 * (12 - 12 % chosen[0].protocol.batch_size) and regime.label_bytes > 0
    assert regime.curve != online.curve and "label_bytes" not in online.flat()


def test_more_stored_logits_than_classes_are_refused():
    with pytest.raises(BadValue, match="label_top_k is 3, fake has 3 classes"):
        run(recipe(soft_labels="stored", label_top_k=3))


def soft_labels(one: torch.Tensor, two: torch.Tensor, hybrid: str) -> torch.Tensor:
    """Of two teachers, at temperature 20, by numpy."""
    a, b = one.double().numpy(), two.double().numpy()
    if hybrid == "balanced":
        norm_a, norm_b = np.sqrt((a**2).sum()), np.sqrt((b**2).sum())
        a, b = a * (norm_a + norm_b) / 2 / norm_a, b * (norm_a + norm_b) / 2 / norm_b
    p, q, both = (np.exp(x / 20) / np.exp(x / 20).sum(axis=1, keepdims=True) for x in (a, b, (a + b) / 2))
    return torch.tensor((p + q) / 2 if hybrid == "softmax" else both, dtype=torch.float32)


def plain_view(images: torch.Tensor, factor: int, draws: torch.Generator) -> torch.Tensor:
    """The paper's augmentation of one batch, one step after the other."""
    pixels = images / 255
    if factor > 1:
        columns, rows = (augment.shuffled_strips(len(pixels), SIDE, factor, draws) for _axis in range(2))
        pixels = augment.take_lines(pixels, columns, rows)
        pixels = augment.resized_crop(pixels, SIDE, 1 / factor, draws)
    pixels = augment.horizontal_flip(pixels, draws)
    lam = torch.rand((), generator=draws, dtype=torch.float64).item()
    centre = (int(torch.randint(SIDE, (), generator=draws)), int(torch.randint(SIDE, (), generator=draws)))
    partner = torch.randperm(len(images), generator=draws)
    top, bottom, left, right = augment.cutmix_box(lam, centre, SIDE)
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels[partner, :, top:bottom, left:right]
    return mixed


@pytest.mark.parametrize(
    ("factor", "hybrid", "warmup", "parts"),
    [(1, "logits", 0, 1), (2, "logits", 0, 2), (1, "balanced", 0, 1), (1, "softmax", 2, 9)],
)
def test_equals_a_plain_loop(factor, hybrid, warmup, parts, tiny_students):
    """One batch at a time, teachers asked for that batch only, AdamW by its formula: the story without its speed.

    Batches of four have two parts at most, as batch normalisation needs two images.
    """
    fields = {"epochs": 4, "hybrid": hybrid, "warmup_epochs": warmup, "accumulation_steps": parts}
    one = recipe(seed=5, factor=factor, **fields)
    teachers = [Oracle(), Oracle()]
    teachers[1].norm.weight.data.mul_(0.5)
    result = run(one, teachers)
    learnt = copy.deepcopy(tiny_students.student.state_dict())

    learner = student.build_network("tiny", C, SIDE, PLAIN, generator(5, "init"))
    decayed = {"conv.weight", "head.weight"}
    first = {name: 0.0 for name, _ in learner.named_parameters()}
    second, step = dict(first), 0
    order, draws = generator(5, "order"), generator(5, "augment")
    for teacher in teachers:
        teacher.eval()
    for epoch in range(4):
        lr, total = 0.01 * (1 + np.cos(np.pi * (epoch - warmup) / (4 - warmup))) / 2, 0.0
        if epoch < warmup:
            lr = 0.01 * [0.5, 1.0][epoch]
        for picked in torch.randperm(12, generator=order).split(4):
            pixels = plain_view(IMAGES[picked], factor, draws)
            with torch.no_grad():
                soft = soft_labels(teachers[0](pixels), teachers[1](pixels), hybrid)
            learner.zero_grad()
            for some in ([0, 1, 2, 3],) if parts == 1 else ([0, 1], [2, 3]):
                log_p = torch.log_softmax(learner(pixels[some]) / 20, dim=1)
                loss = (soft[some] * (soft[some].log() - log_p)).sum() / 4
                loss.backward()
                total += loss.item() / 3
            step += 1
            for name, parameter in learner.named_parameters():
                gradient = parameter.grad
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                move = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
                parameter.data -= lr * (move + (0.01 * parameter.data if name in decayed else 0.0))
        assert result.curve[epoch]["loss"] == pytest.approx(total, rel=1e-4)
    for name, value in learner.state_dict().items():
        assert torch.allclose(learnt[name].float(), value.float(), atol=1e-4), name


def test_teachers_that_run_ahead_change_nothing(monkeypatch):
    ahead = run(recipe(epochs=6))
    calls = len(SEEN["teacher"]) - 1  # the first asks for the number of classes
    monkeypatch.setitem(teaching.AHEAD, "cpu", 1)
    alone = run(recipe(epochs=6))
    assert (calls, len(SEEN["teacher"]) - calls - 2) == (1, 18)
    assert ahead.correct == alone.correct
    for one, other in zip(ahead.curve, alone.curve, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def pack(*recipes, teachers=None, **options):
    """Of evaluations with the same teachers."""
    teachers = [Oracle()] if teachers is None else teachers
    evaluations = [
        posteval.Evaluation(one, IMAGES, LABELS, teachers if one.protocol.labels == "soft" else [], **options)
        for one in recipes
    ]
    return posteval.train_pack(evaluations, Fake(), device="cpu")


NEIGHBOURS = (
    recipe(), recipe(zeta=2.0), recipe(temperature=4.0), recipe(loss="mse_gt"), recipe(optimizer="sgd"),
    recipe(seed=1), recipe(epochs=5), recipe(batch_size=5), recipe(labels="hard"), recipe(teacher_mode="batch"),
)  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 8, len(NEIGHBOURS)])
def test_every_student_of_a_pack_is_what_it_is_alone(size, tiny_students):
    tiny_students.dropout = 0.3
    for found, one in zip(pack(*NEIGHBOURS[:size]), NEIGHBOURS, strict=False):
        assert outcome(found) == outcome(run(one))


def test_equal_views_pay_for_their_teachers_once():
    """Other losses, schedules and precisions of nothing shared; another seed shares none."""
    pack(*(one for one in NEIGHBOURS[:5]))
    shared = len(SEEN["teacher"])
    SEEN["teacher"].clear()
    pack(recipe())
    assert shared == len(SEEN["teacher"]) > 1
    SEEN["teacher"].clear()
    pack(recipe(), recipe(seed=1))
    assert len(SEEN["teacher"]) == 2 * shared - 1, "one look at the number of classes, and passes for either seed"


def test_one_of_a_pack_that_ends_moves_no_other():
    stopped, epochs = recipe(test_epochs=(1,)), []

    def stop(epoch, top1_pct):
        epochs.append(epoch)
        raise InterruptedError

    evaluations = [
        posteval.Evaluation(recipe(zeta=2.0), IMAGES, LABELS, [Oracle()]),
        posteval.Evaluation(stopped, IMAGES, LABELS, [Oracle()], tested=stop),
        posteval.Evaluation(recipe(lr=1e30, optimizer="sgd"), IMAGES, LABELS, [Oracle()]),
        posteval.Evaluation(recipe(temperature=4.0), IMAGES, LABELS, [Oracle()]),
    ]
    first, pruned, diverged, last = posteval.train_pack(evaluations, Fake(), device="cpu")
    assert isinstance(pruned, InterruptedError) and epochs == [1]
    assert isinstance(diverged, Diverged)
    assert outcome(first) == outcome(run(recipe(zeta=2.0)))
    assert outcome(last) == outcome(run(recipe(temperature=4.0)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("CUDA error: launch failure")])
def test_what_leaves_the_device_in_doubt_ends_the_pack(monkeypatch, error):
    def fails(self):
        raise error

    monkeypatch.setattr(student.StudentTraining, "end_epoch", fails)
    with pytest.raises(type(error)):
        pack(recipe(), recipe(zeta=2.0))


def test_teacher_and_student_see_the_same_pixels():
    run(recipe(factor=2))
    assert torch.equal(torch.cat(SEEN["teacher"][1:]), torch.cat(SEEN["student"]))


@pytest.mark.parametrize(("count", "batch", "sizes"), [(12, 5, [5, 5, 2]), (11, 5, [5, 5]), (10, 10, [10])])
def test_batches_of_an_epoch(count, batch, sizes):
    run(recipe(batch_size=batch, epochs=2), images=IMAGES[:count], labels=LABELS[:count])
    assert [len(pixels) for pixels in SEEN["student"]] == sizes * 2


def test_each_epoch_shuffles_the_whole_set():
    run(recipe(augmentation=[]))
    epochs = torch.cat(SEEN["student"]).split(12)
    known = IMAGES / 255
    orders = [[int((known == pixels).flatten(1).all(1).nonzero()) for pixels in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1]


def test_learning_rates_of_the_curve():
    rates = [row["lr"] for row in run(recipe(epochs=4, zeta=2.0)).curve]
    assert rates == pytest.approx([0.01, 0.009619, 0.008536, 0.006913], rel=1e-3)


def test_a_warm_up_climbs_to_the_rate_and_the_cosine_takes_the_rest():
    rates = [row["lr"] for row in run(recipe(epochs=6, zeta=2.0, warmup_epochs=2)).curve]
    rest = [row["lr"] for row in run(recipe(epochs=4, zeta=2.0)).curve]
    assert rates == pytest.approx([0.005, 0.01, *rest])
    assert [row["lr"] for row in run(recipe(epochs=3, warmup_epochs=4)).curve] == pytest.approx([0.0025, 0.005, 0.0075])


def test_ways_to_combine_teachers_differ_and_are_one_for_one_teacher():
    other = Oracle()
    other.norm.weight.data.mul_(torch.tensor([3.0, 0.1, 1.0]))
    ways = ("logits", "balanced", "softmax")
    alone = [run(recipe(hybrid=way), [other]).final_loss for way in ways]
    assert alone == pytest.approx([alone[0]] * 3, rel=1e-5)
    pairs = {run(recipe(hybrid=way, temperature=1.0), [Oracle(), other]).final_loss for way in ways}
    assert len(pairs) == 3


def test_weight_decay_is_for_matrices_named_weight():
    tiny = Tiny()
    tiny.position = nn.Parameter(torch.ones(2, 2))
    decayed, plain = student.make_optimizer(tiny, recipe(weight_decay=0.3).protocol).param_groups
    assert [tuple(tensor.shape) for tensor in decayed["params"]] == [(8, 3, 3, 3), (C, 8)]
    assert sorted(tuple(tensor.shape) for tensor in plain["params"]) == [(2, 2), (3,), (8,), (8,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_on_all_is_torchs_optimizer_without_groups(optimizer):
    ours, theirs = Tiny(), Tiny()
    theirs.load_state_dict(ours.state_dict())
    fields = {"weight_decay": 0.3, "weight_decay_on": "all", "lr": 0.01, "optimizer": optimizer}
    mine = student.make_optimizer(ours, recipe(**fields).protocol)
    if optimizer == "sgd":
        other = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=0.3)
    else:
        other = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.999), weight_decay=0.3)
    for step in range(3):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator(step, "gradient"))
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours.norm.weight, torch.ones(8), atol=1e-3)


def test_averaged_parameters_are_tested_and_change_no_step(monkeypatch):
    """Against the recursion in double precision over the parameters after each step."""
    after: list[list[torch.Tensor]] = []
    tested: list[dict[str, torch.Tensor]] = []
    step, correct = student.StudentTraining.step, student.Tester.correct_per_class

    def values(network):
        return [parameter.detach().double().clone() for parameter in network.parameters()]

    def watched_step(self, batch):
        if not after:
            after.append(values(self.network))
        step(self, batch)
        after.append(values(self.network))

    def watched_test(self, *rest):
        tested.append(copy.deepcopy(self.network.state_dict()))
        return correct(self, *rest)

    monkeypatch.setattr(student.StudentTraining, "step", watched_step)
    monkeypatch.setattr(student.Tester, "correct_per_class", watched_test)
    averaged = run(recipe(epochs=4, ema=0.8, test_epochs=(2,)))
    live, after[:] = list(after), []
    plain = run(recipe(epochs=4, test_epochs=(2,)))
    assert averaged.curve == plain.curve
    for own, other in zip(live, after, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))
    names = [name for name, _ in Tiny().named_parameters()]
    for found, at, unaveraged in zip(tested[:2], (6, 12), tested[2:], strict=True):
        mean = live[0]
        for now in live[1 : at + 1]:
            mean = [0.8 * old + 0.2 * new for old, new in zip(mean, now, strict=True)]
        for name, expected in zip(names, mean, strict=True):
            assert torch.allclose(found[name].double(), expected, rtol=1e-5, atol=1e-6), name
            assert not torch.equal(found[name], unaveraged[name])
        for name in found.keys() - set(names):
            assert torch.equal(found[name], unaveraged[name]), "buffers are the student's own"


def test_test_images_are_resized_and_cropped_as_by_pil(tiny_students, monkeypatch):
    seen, dataset = [], Fake()
    build = student.build_network

    def watched(*arguments):
        network = build(*arguments)
        network.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].clone()) if not module.training else None
        )
        return network

    monkeypatch.setattr(student, "build_network", watched)
    run(recipe(test_resize=10), dataset=dataset)
    pixels = torch.cat(seen) * 255
    published = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(SIDE), transforms.PILToTensor()])
    expected = torch.stack([published(to_pil_image(image)) for image in dataset.images("test", range(300))])
    assert (pixels - expected).abs().max() <= 1.001, "one level of rounding"
    assert not torch.equal(expected, dataset.images("test", range(300)))
    with pytest.raises(BadValue, match=r"test_resize is 7, but test images are cropped to 8 pixels.*at least 8, or 0"):
        run(recipe(test_resize=7))


def test_the_headline_reads_each_test_image_once():
    dataset = Fake(count=student.TEST_BATCH + 7)
    run(recipe(), dataset=dataset)
    assert dataset.read.tolist() == [1] * (student.TEST_BATCH + 7)
    assert dataset.splits == {"test"}


def test_validation_is_a_split_like_any_other():
    dataset = Fake()
    result = run(recipe().model_copy(update={"tested_on": "validation"}), dataset=dataset)
    assert dataset.splits == {"validation"} and result.tested_on == "validation"


def test_further_test_epochs_are_diagnostics_only(tiny_students):
    tiny_students.dropout = 0.3
    plain, watched = run(recipe(epochs=4)), run(recipe(epochs=4, test_epochs=(1, 3, 4)))
    assert plain.diagnostics == {} and list(watched.diagnostics) == [1, 3, 4]
    assert watched.diagnostics[4] == watched.top1_pct
    assert outcome(plain) | {"diagnostics": 0} == outcome(watched) | {"diagnostics": 0}
    assert watched.flat()["diagnostic_top1_pct_epoch_3"] == watched.diagnostics[3]


def test_whoever_hears_of_the_tests_may_stop_the_training(tiny_students):
    heard, told = [], []

    def outcome_with(tested):
        one = posteval.Evaluation(recipe(epochs=4, test_epochs=(1, 3)), IMAGES, LABELS, [Oracle()], tested=tested)
        return posteval.train_pack([one], Fake(), device="cpu")[0]

    result = outcome_with(lambda epoch, top1_pct: heard.append((epoch, top1_pct)))
    assert heard == list(result.diagnostics.items()), "the last epoch is the headline, unless it is asked for"

    def stop(epoch, top1_pct):
        told.append(epoch)
        raise InterruptedError

    assert isinstance(outcome_with(stop), InterruptedError)
    assert told == [1]


def test_dropout_repeats_and_leaves_the_process_wide_generator_alone(tiny_students):
    tiny_students.dropout = 0.5
    before = torch.get_rng_state()
    first = run(recipe())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.rand(7)
        assert outcome(run(recipe())) == outcome(first)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_a_teacher_is_never_changed(mode):
    teacher = Oracle().train()
    before = copy.deepcopy(teacher.state_dict())
    run(recipe(teacher_mode=mode), [teacher])
    assert teacher.training and teacher.norm.track_running_stats and teacher.norm.weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_teachers_on_batch_statistics():
    one = recipe(teacher_mode="batch")
    teacher = teaching.frozen(Oracle(), "batch", "fp32", torch.device("cpu"))
    for answered in teaching.LabelledViews(IMAGES, LABELS, [teacher], one, "fp32"):
        batch = answered.with_labels_of(one.protocol)
        pixels = batch.images
        centred = pixels - pixels.mean((0, 2, 3), keepdim=True)
        expected = 20 * (centred / (pixels.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()).mean((2, 3))
        assert torch.allclose(batch.targets.teacher_logits, expected, atol=1e-4)


def test_hard_labels_name_both_images_of_a_mix():
    batches = [batch for some in views(IMAGES, LABELS, protocol(epochs=8), 0, ahead=3) for batch in some.batches]
    known = IMAGES / 255
    for batch in batches:
        targets, changed = batch.targets, False
        for k, pixels in enumerate(batch.images):
            match = torch.maximum((known == pixels).all(1), (known.flip(3) == pixels).all(1)).sum((1, 2))
            shares = torch.zeros(C).scatter_reduce(0, LABELS, match.float(), "amax") / SIDE**2
            if targets.lam > 0.6:
                assert shares[targets.labels[k]] >= targets.lam - 1e-6
            changed |= bool(targets.labels[k] != targets.labels_mixed[k])
    assert any((batch.targets.labels != batch.targets.labels_mixed).any() for batch in batches)


def test_second_student_forward_moves_the_statistics_twice(tiny_students):
    run(recipe())
    assert int(tiny_students.student.norm.num_batches_tracked) == 9
    run(recipe(extra_student_forward=True))
    assert int(tiny_students.student.norm.num_batches_tracked) == 18


def test_bf16_keeps_weights_and_statistics_in_fp32(tiny_students):
    result = run(recipe(precision="bf16", epochs=10))
    assert {value.dtype for value in tiny_students.student.state_dict().values()} == {torch.float32, torch.int64}
    assert result.curve[0]["loss"] == pytest.approx(run(recipe(epochs=10)).curve[0]["loss"], rel=0.1)


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch):
    monkeypatch.setitem(teaching.AHEAD, "cpu", 1)
    with pytest.raises(Diverged, match=r"nan in epoch 2, step 2 of 3; the last finite one was 0\.\d+") as caught:
        run(recipe(), [Oracle(breaks_at=6)])
    assert caught.value.status == "diverged"
    with pytest.raises(Diverged, match="epoch 1, step 1 of 3; the last finite one was none"):
        run(recipe(), [Oracle(breaks_at=2)])


def test_progress_only_grows_and_ends_at_one():
    seen = []
    run(recipe(), progress=lambda fraction, note: seen.append((fraction, note)))
    fractions = [fraction for fraction, _note in seen]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)
    assert seen[0][1].startswith("training, epoch 1/3, ") and seen[-1][1] == "testing, epoch 3/3, 0 s left"


def test_result_on_disk(tmp_path):
    result = run(recipe(test_epochs=(2,)))
    result.write(tmp_path)
    plain = json.loads((tmp_path / "result.json").read_text())
    assert plain["correct"] == result.correct and plain["diagnostics"] == {"2": result.diagnostics[2]}
    assert parquet.read_table(tmp_path / "curve.parquet").to_pylist() == result.curve
    assert all(isinstance(value, int | float | str) for value in result.flat().values())


BAD = {
    "shape": (lambda: run(recipe(), images=IMAGES[:, :, :4]), BadValue, r"\(N, 3, 8, 8\)"),
    "count": (lambda: run(recipe(), labels=LABELS[:5]), BadValue, r"labels \(5,\)"),
    "dtype": (lambda: run(recipe(), images=IMAGES.double()), BadValue, "float64 images"),
    "range": (lambda: run(recipe(), images=IMAGES.float()), BadValue, r"pixels in \[0, 1\]"),
    "nan": (lambda: run(recipe(), images=IMAGES.float() * float("nan")), BadValue, r"pixels in \[0, 1\]"),
    "label": (lambda: run(recipe(), labels=LABELS + 1), BadValue, "labels range from 1 to 3"),
    "soft labels of nobody": (
        lambda: posteval.evaluate(IMAGES, LABELS, Fake(), soft_labels="once"),
        BadValue,
        "soft_labels 'once' are those of a teacher, and none was given",
    ),
    "constants of nobody": (
        lambda: posteval.evaluate(IMAGES, LABELS, Fake(), normalisation="imagenet"),
        BadValue,
        "normalisation is 'imagenet', but there is no teacher",
    ),
    "one image": (lambda: run(recipe(), images=IMAGES[:1], labels=LABELS[:1]), BadValue, "needs two"),
    "batch of one": (lambda: run(recipe(batch_size=1)), BadValue, "needs two"),
    "no teacher": (lambda: run(recipe(), []), BadValue, "need a teacher"),
    "class list": (
        lambda: run(recipe().model_copy(update={"classes": "d" * 64})),
        ClassOrderError,
        "class list dddddddddddd, fake has cccccccccccc",
    ),
    "teacher's classes": (
        lambda: run(recipe(), [nn.Sequential(nn.Flatten(), nn.Linear(192, 5))]),
        BadValue,
        "5 classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_work(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("hardware", "expected"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_auto_precision_is_that_of_the_hardware(monkeypatch, hardware, expected):
    monkeypatch.setattr(device, "bf16_in_hardware", lambda _device: hardware)
    found = run(recipe(precision="auto"))
    assert found.ran_precision == expected
    assert outcome(found) == outcome(run(recipe(precision=expected)))


def test_evaluate_builds_the_recipe():
    options = {"epochs": 2, "precision": "fp32", "batch_size": 4, "zeta": 1.0}
    one = recipe(seed=3, epochs=2, lr=1e-3)
    soft = posteval.evaluate(IMAGES, LABELS, Fake(), Oracle(), student_seed=3, **options)
    assert outcome(soft) == outcome(run(one))
    of_numpy = {"epochs": np.int64(2), "student_seed": np.int64(3)}
    assert outcome(posteval.evaluate(IMAGES, LABELS, Fake(), Oracle(), **options | of_numpy)) == outcome(soft)
    hard = posteval.evaluate(IMAGES, LABELS.int(), Fake(), student_seed=3, **options)
    assert outcome(hard) == outcome(run(recipe(seed=3, epochs=2, lr=1e-3, labels="hard", loss="ce")))
    options |= {"protocol": "pca-hard", "student_seed": 3}
    hard = posteval.evaluate(IMAGES, LABELS, Fake(), **options)
    with pytest.warns(UserWarning, match="the teacher is not used: the protocol's labels are hard"):
        assert outcome(posteval.evaluate(IMAGES, LABELS, Fake(), nn.Identity(), **options)) == outcome(hard)


def test_evaluate_resolves_the_protocol_by_student():
    kept = []

    def keep(pack, *_rest, **_options):
        kept.append(pack[0].recipe)
        return [None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posteval, "train_pack", keep)
        posteval.evaluate(IMAGES, LABELS, Fake(), Oracle())
        posteval.evaluate(IMAGES, LABELS, Fake(), Oracle(), student="alexnet")
        posteval.evaluate(IMAGES, LABELS, Fake(), student="convnet", protocol="minimax-hard")
        posteval.evaluate(IMAGES, LABELS, Fake(), Oracle(), student="mobilenet_v2", protocol="rded")
    same, other, minimax, rded = (one.protocol for one in kept)
    assert minimax.epochs == 2000, "by four images per class"
    assert (rded.batch_size, rded.lr) == (10, 2.5e-3)
    assert (same.zeta, same.batch_size, same.epochs) == (1.0, 12, 400)
    assert (other.zeta, other.batch_size, other.epochs) == (2.0, 12, 400)


def test_images_in_float_equal_images_in_bytes():
    assert outcome(run(recipe(), images=IMAGES / 255)) == outcome(run(recipe()))


@pytest.mark.parametrize(
    "modes",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: _changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
        lambda: _changed(lambda: None, torch.set_default_device, "meta"),
        lambda: torch.device("meta"),
        lambda: _changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
        lambda: _products(torch.backends.cuda.matmul, "tf32"),
        lambda: _products(torch.backends, "tf32"),
        lambda: _products(torch.backends.mkldnn.conv, "bf16"),
    ],
)
def test_the_callers_modes_change_nothing_and_stay(modes):
    def state():
        backends = torch.backends
        places = (backends, backends.cuda.matmul, backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv)
        dtype, products = torch.get_default_dtype(), [place.fp32_precision for place in places]
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return torch.get_default_device(), dtype, products, modes

    def run():
        options = {"student": "convnet_w32", "protocol": "rd3", "epochs": 2, "batch_size": 10, "student_seed": 3}
        return posteval.evaluate(IMAGES, LABELS, data, teacher, precision="fp32", **options)

    data, teacher = Fake(), Oracle()
    expected = run()
    with modes():
        before = state()
        found = run()
        assert state() == before
    assert (found.correct, found.final_loss) == (expected.correct, expected.final_loss)


def _products(place, value):
    return _changed(lambda: place.fp32_precision, lambda given: setattr(place, "fp32_precision", given), value)


@contextlib.contextmanager
def _changed(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def test_classes_without_images_are_said():
    few = LABELS != 2
    with pytest.warns(UserWarning, match="1 of 3 classes have no images: "):
        posteval.evaluate(IMAGES[few], LABELS[few], Fake(), student="convnet_w32", epochs=1)
