"""The shipped presets against published values, written out by hand."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from rd3.errors import Unsupported
from rd3.models import NETWORKS
from rd3.protocol import EvalProtocol, Preset, presets, read_preset, resolve_protocol

CLASSES = {"cifar10": 10, "cifar100": 100, "tinyimagenet": 200, "imagenette": 10, "imagewoof": 10, "imagenet1k": 1000}
LARGE = ("imagenette", "imagewoof", "imagenet1k")


def at(name: str | Preset, dataset: str, ipc: int, student: str = "resnet18", same: bool = True) -> EvalProtocol:
    return resolve_protocol(
        name,
        factor=2 if dataset in LARGE else 1,
        same_network=same,
        set_size=ipc * CLASSES[dataset],
        student=student,
        dataset=dataset,
        classes=CLASSES[dataset],
        ipc=ipc,
    )


def steps(protocol: EvalProtocol) -> list[str]:
    return [step.name for step in protocol.augmentation]


def test_every_shipped_file_reads_as_a_users_does_and_says_how_its_accuracy_is_reported():
    for name, rule in presets().items():
        assert read_preset(Path(str(files("rd3"))) / "presets" / f"{name}.yaml") == rule
        if not name.startswith("rd3"):
            assert "last epoch" in "; ".join((rule.source, *rule.deviates)), name
        assert not any(sentence.endswith(".") for sentence in rule.deviates), name
        for student in (student for each in rule.rules for student in each.when.students or ()):
            assert student in NETWORKS.names(), name
        for dataset in (dataset for each in rule.rules for dataset in each.when.datasets or ()):
            assert dataset in CLASSES, name


@pytest.mark.parametrize(
    ("dataset", "ipc", "batch"),
    [
        ("cifar10", 1, 10), ("cifar10", 10, 50), ("cifar10", 50, 100), ("cifar10", 5, 10), ("cifar10", 20, 50),
        ("cifar10", 100, 100),
        ("cifar100", 1, 20), ("cifar100", 10, 100), ("cifar100", 50, 200), ("imagenette", 1, 10),
        ("imagenette", 10, 50), ("imagewoof", 50, 100),
        ("imagenet1k", 1, 20), ("imagenet1k", 10, 100), ("imagenet1k", 50, 200), ("tinyimagenet", 1, 100),
        ("tinyimagenet", 10, 100), ("tinyimagenet", 50, 100),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["rded", "delt"])
def test_batches_of_rded(name, dataset, ipc, batch):
    protocol = at(name, dataset, ipc)
    assert protocol.batch_size == batch
    assert protocol.test_resize == (72 if dataset == "tinyimagenet" else 0), "64 // 7 * 8; others are the dataset's"
    fields = protocol.epochs, protocol.zeta, protocol.schedule, protocol.lr, protocol.weight_decay, protocol.optimizer
    assert fields == (300, 2.0, "cosine", 1e-3, 0.01, "adamw")
    assert protocol.value("loss") == {"kl": {"temperature": 20.0, "scale_t2": False}}


@pytest.mark.parametrize(
    ("student", "lr"),
    [
        ("resnet18", 1e-3), ("resnet50", 1e-3), ("resnet101", 1e-3), ("convnet", 1e-3), ("efficientnet_b0", 2e-3),
        ("mobilenet_v2", 2.5e-3), ("alexnet", 1e-4), ("vit_b_16", 1e-4), ("swin_v2_t", 1e-4),
    ],
)  # fmt: skip
def test_rates_of_rded(student, lr):
    for name in ("rded", "delt"):
        assert at(name, "imagenet1k", 10, student).lr == lr
        small, other = (at(name, "cifar100", 10, student, same) for same in (True, False))
        assert (small.lr, small.batch_size) == ((2e-3, 25) if student == "convnet" else (lr, 100))
        assert (other.lr, other.batch_size) == (lr, 100), "the teacher of the exception is a ConvNet too"


@pytest.mark.parametrize(("ipc", "ten", "hundred"), [(20, 50, 100), (30, 100, 200), (40, 100, 200), (100, 100, 200)])
def test_batches_that_delt_adds(ipc, ten, hundred):
    assert [at("delt", dataset, ipc).batch_size for dataset in ("cifar10", "cifar100")] == [ten, hundred]
    assert at("delt", "imagenet1k", ipc, "resnet101").batch_size == hundred // 2
    assert at("rded", "imagenet1k", ipc, "resnet101").batch_size == (200 if ipc >= 50 else 100)


def test_augmentations_of_rded_and_delt():
    assert steps(at("rded", "imagenet1k", 10)) == ["patch_shuffle", "resized_crop", "flip", "cutmix"]
    assert steps(at("rded", "cifar10", 10)) == ["flip", "cutmix"]
    delt = at("delt", "cifar10", 10)
    assert steps(delt) == ["timm_rand_augment", "resized_crop", "flip", "cutmix"]
    assert delt.value("resized_crop.min_area") == 0.25
    names = ("magnitude", "operations", "magnitude_std", "probability")
    assert [delt.value(f"timm_rand_augment.{name}") for name in names] == [6, 2, 1.0, 0.5]


@pytest.mark.parametrize(
    ("dataset", "ipc", "epochs"),
    [
        ("imagenette", 1, 3000), ("imagenette", 2, 2000), ("imagenette", 10, 2000), ("imagewoof", 11, 1500),
        ("imagewoof", 50, 1500), ("imagewoof", 51, 1000), ("imagewoof", 200, 1000), ("imagewoof", 500, 500),
        ("imagewoof", 501, 300), ("cifar100", 1, 2000), ("cifar100", 10, 1300), ("cifar100", 50, 1000),
        ("cifar100", 200, 600), ("cifar100", 500, 300), ("cifar100", 501, 200),
    ],
)  # fmt: skip
def test_minimax_hard(dataset, ipc, epochs):
    protocol = at("minimax-hard", dataset, ipc)
    assert protocol.epochs == epochs
    assert protocol.batch_size == min(64, ipc * CLASSES[dataset])
    assert (protocol.optimizer, protocol.lr, protocol.beta1) == ("sgd", 0.01, 0.9)
    assert (protocol.weight_decay, protocol.weight_decay_on) == (5e-4, "all")
    assert (protocol.schedule, protocol.drop_at, protocol.drop_factor) == ("multistep", (2 / 3, 5 / 6), 0.2)
    assert protocol.value("loss") == {"ce": {"hard_mix": "weighted"}}
    assert steps(protocol) == ["resized_crop", "flip", "colour_jitter", "lighting", "cutmix"]
    assert (protocol.value("resized_crop.min_area"), protocol.value("lighting.std")) == (0.5, 0.1)
    assert [protocol.value(f"colour_jitter.{name}") for name in ("brightness", "contrast", "saturation")] == [0.4] * 3


ADAMW, SGD = ("adamw", 1e-3, 0.9, 0.01), ("sgd", 0.1, 0.875, 5e-4)


@pytest.mark.parametrize(
    ("name", "dataset", "ipc", "student", "epochs", "batch", "optimizer", "schedule", "area", "rand"),
    [
        ("edc", "imagenet1k", 10, "resnet18", 300, 100, ADAMW, "linear", 0.5, False),
        ("edc", "imagenet1k", 1, "mobilenet_v2", 300, 100, ADAMW, "linear", 0.5, False),
        ("edc-small", "imagenette", 10, "resnet18", 1000, 50, ADAMW, "two_part", 0.5, True),
        ("edc-small", "tinyimagenet", 10, "mobilenet_v2", 300, 100, SGD, "cosine", 0.5, True),
        ("edc-small", "tinyimagenet", 10, "resnet101", 1000, 100, SGD, "cosine", 0.5, True),
        ("edc-small", "cifar100", 10, "resnet18", 1000, 50, SGD, "two_part", 0.5, True),
        ("edc-small", "cifar10", 1, "resnet18", 1000, 10, ADAMW, "multistep", 0.08, True),
        ("edc-small", "cifar10", 50, "resnet101", 1000, 10, ADAMW, "multistep", 0.08, True),
    ],
)
def test_edc(name, dataset, ipc, student, epochs, batch, optimizer, schedule, area, rand):
    protocol = at(name, dataset, ipc, student)
    assert (protocol.epochs, protocol.batch_size, protocol.schedule, protocol.zeta) == (epochs, batch, schedule, 2.0)
    assert (protocol.optimizer, protocol.lr, protocol.beta1, protocol.weight_decay) == optimizer
    assert (protocol.value("loss"), protocol.ema) == ({"mse_gt": {"gamma": 0.025}}, 0.99)
    assert steps(protocol) == [*(["rand_augment"] if rand else []), "resized_crop", "flip", "cutmix"]
    assert protocol.value("resized_crop.min_area") == area
    if schedule == "multistep":
        assert (protocol.drop_at, protocol.drop_factor) == ((0.8, 0.9, 0.95), 0.5)


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "batch", "parts", "optimizer", "gamma", "hybrid"),
    [
        ("gvbsm", "imagenet1k", 300, 1024, 1, ("adamw", 1e-3, 0.01), 0.1, "balanced"),
        ("gvbsm-small", "tinyimagenet", 100, 100, 2, ("sgd", 0.1, 5e-4), 0.1, "logits"),
        ("gvbsm-small", "cifar100", 1000, 64, 1, ("sgd", 0.1, 5e-4), 0.15, "logits"),
        ("gvbsm-small", "cifar10", 1000, 100, 1, ("adamw", 1e-3, 0.01), 0.15, "logits"),
    ],
)
def test_gvbsm(name, dataset, epochs, batch, parts, optimizer, gamma, hybrid):
    protocol = at(name, dataset, 10)
    assert (protocol.epochs, protocol.batch_size, protocol.accumulation_steps) == (epochs, batch, parts)
    assert (protocol.optimizer, protocol.lr, protocol.weight_decay, protocol.beta1) == (*optimizer, 0.9)
    assert (protocol.value("loss"), protocol.hybrid) == ({"mse_gt": {"gamma": gamma}}, hybrid)
    assert (protocol.zeta, protocol.schedule, protocol.weight_decay_on) == (1.0, "cosine", "matrices")
    assert (steps(protocol), protocol.value("resized_crop.min_area")) == (["resized_crop", "flip", "cutmix"], 0.08)


@pytest.mark.parametrize(("student", "parts"), [("resnet18", 1), ("resnet50", 4), ("resnet101", 4)])
def test_gvbsm_accumulates_gradients_of_large_students(student, parts):
    assert at("gvbsm", "imagenet1k", 10, student).accumulation_steps == parts


@pytest.mark.parametrize("name", ["sre2l-cifar", "dwa-cifar"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_small_sets_with_mixup_and_a_teacher_in_train_mode(name, dataset):
    protocol = at(name, dataset, 50)
    assert (protocol.epochs, protocol.batch_size, protocol.zeta, protocol.lr) == (400, 128, 1.0, 1e-3)
    assert (protocol.optimizer, protocol.weight_decay, protocol.weight_decay_on) == ("adamw", 0.01, "all")
    assert protocol.value("loss") == {"kl": {"temperature": 30.0, "scale_t2": False}}
    assert protocol.value("augmentation") == [
        {"pad_crop": {"padding": 4}},
        {"flip": {"probability": 0.5}},
        {"mixup": {"alpha": 0.8}},
    ]
    assert protocol.teacher_mode == "batch"


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "mix"), [("sre2l-tiny", 100, 256, []), ("dwa-tiny", 200, 64, ["cutmix"])]
)
def test_tiny_imagenet_by_sgd(name, epochs, batch, mix):
    protocol = at(name, "tinyimagenet", 50)
    assert (protocol.epochs, protocol.batch_size, protocol.optimizer, protocol.lr) == (epochs, batch, "sgd", 0.2)
    assert (protocol.beta1, protocol.weight_decay, protocol.weight_decay_on) == (0.9, 1e-4, "all")
    assert (protocol.zeta, protocol.warmup_epochs, protocol.warmup_start) == (1.0, 5, 0.01)
    assert protocol.value("loss") == {"kl": {"temperature": 20.0, "scale_t2": True}}
    assert (steps(protocol), protocol.value("resized_crop.min_area")) == (["resized_crop", "flip", *mix], 0.08)


@pytest.mark.parametrize(("same", "zeta"), [(True, 1.0), (False, 2.0)])
def test_rd3_with_one_batch_for_all(same, zeta):
    cross, usual = (at(name, "imagenet1k", 10, "mobilenet_v2", same) for name in ("rd3-cross", "rd3"))
    assert (cross.batch_size, cross.zeta) == (50, zeta)
    assert cross.model_copy(update={"batch_size": usual.batch_size}) == usual


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tinyimagenet"])
def test_dc_bench(dataset):
    protocol = at("dc-bench", dataset, 50)
    assert (protocol.epochs, protocol.batch_size, protocol.augmentation) == (301, 256, ())
    assert (protocol.optimizer, protocol.lr, protocol.beta1, protocol.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (protocol.weight_decay_on, protocol.labels, protocol.loss.name) == ("all", "hard", "ce")
    assert (protocol.schedule, protocol.drop_at, protocol.drop_factor) == ("multistep", (0.504,), 0.1)


CVDD = {
    "cifar10": {"resnet18": {1: (1e-3, 1), 10: (1e-3, 1), 50: (1e-3, 1)}, "resnet101": {10: (5e-4, 1)}},
    "cifar100": {
        "resnet18": {1: (1e-3, 1), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet50": {1: (1e-3, 1), 10: (1e-3, 2)},
        "resnet101": {1: (5e-4, 1), 10: (5e-4, 1)},
    },
    "tinyimagenet": {
        "resnet18": {1: (1e-3, 2), 10: (1e-3, 1), 50: (1e-3, 2)},
        "resnet50": {1: (1e-3, 1), 10: (1e-3, 1)},
        "resnet101": {1: (5e-4, 2), 10: (5e-4, 2)},
    },
    "imagenette": {
        "resnet18": {1: (5e-4, 2), 10: (5e-4, 1), 50: (5e-4, 2)},
        "resnet50": {1: (5e-4, 2), 10: (1e-3, 1), 50: (5e-4, 1)},
        "resnet101": {1: (5e-4, 2), 10: (5e-4, 2), 50: (1e-3, 2)},
    },
    "imagenet1k": {
        "resnet18": {1: (1e-3, 2), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet50": {10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet101": {1: (1e-3, 2), 10: (1e-3, 2), 50: (5e-4, 2)},
    },
}


def test_cvdd_is_incomplete_with_its_values_on_record():
    with pytest.raises(Unsupported, match=r"Protocol cvdd is incomplete.*weighted by the softmax.*halves of a batch"):
        at("cvdd", "cifar10", 10)
    rule = presets()["cvdd"].model_copy(update={"incomplete": ()})
    for dataset, students in CVDD.items():
        for student, values in students.items():
            for ipc, (lr, zeta) in values.items():
                protocol = resolve_protocol(
                    rule, factor=1, same_network=True, set_size=ipc * CLASSES[dataset], student=student,
                    dataset=dataset, classes=CLASSES[dataset], ipc=ipc,
                )  # fmt: skip
                assert (protocol.lr, protocol.zeta) == (lr, zeta), (dataset, student, ipc)
                assert protocol.batch_size == (10 if ipc * CLASSES[dataset] == 10 else 16)
                assert (protocol.epochs, protocol.accumulation_steps, protocol.teacher_mode) == (300, 2, "batch")


HALD = {
    "cifar100": {
        "resnet18": {1: (5e-4, 2), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet50": {1: (1e-3, 1), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet101": {1: (5e-4, 1), 10: (5e-4, 1), 50: (5e-4, 1)},
    },
    "tinyimagenet": {
        "resnet18": {1: (1e-3, 2), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet50": {1: (5e-4, 2), 10: (5e-4, 2), 50: (5e-4, 1)},
        "resnet101": {1: (5e-4, 2), 10: (5e-4, 2), 50: (5e-4, 1)},
    },
    "imagewoof": {
        "resnet18": {1: (5e-4, 2), 10: (5e-4, 1), 50: (1e-3, 2)},
        "resnet50": {1: (5e-4, 2), 10: (5e-3, 1), 50: (5e-4, 1)},
        "resnet101": {1: (1e-3, 1), 10: (5e-4, 2), 50: (5e-4, 1)},
    },
    "imagenette": {
        "resnet18": {1: (5e-4, 2), 10: (5e-4, 1), 50: (5e-4, 2)},
        "resnet50": {1: (5e-4, 2), 10: (5e-4, 1), 50: (5e-4, 1)},
        "resnet101": {1: (5e-4, 2), 10: (5e-4, 2), 50: (1e-3, 2)},
    },
    "imagenet1k": {
        "resnet18": {1: (1e-3, 2), 10: (1e-3, 2), 20: (1e-3, 2), 30: (1e-3, 2), 40: (1e-3, 2), 50: (1e-3, 1)},
        "resnet50": {1: (5e-4, 2), 10: (1e-3, 2), 50: (1e-3, 1)},
        "resnet101": {1: (3.5e-3, 2), 10: (1e-3, 2), 50: (5e-4, 1)},
        "mobilenet_v2": {10: (1e-3, 2), 20: (1e-3, 2), 30: (1e-3, 2), 40: (1e-3, 2), 50: (1e-3, 2)},
    },
}


def test_hald_is_incomplete_with_its_values_on_record():
    with pytest.raises(Unsupported, match=r"Protocol hald is incomplete.*middle 150 epochs.*without replacement"):
        at("hald", "cifar100", 10)
    rule = presets()["hald"].model_copy(update={"incomplete": ()})
    for dataset, students in HALD.items():
        for student, values in students.items():
            for ipc, (lr, zeta) in values.items():
                protocol = at(rule, dataset, ipc, student)
                assert (protocol.lr, protocol.zeta) == (lr, zeta), (dataset, student, ipc)
                assert (protocol.epochs, protocol.batch_size) == (300, min(16, ipc * CLASSES[dataset]))
                assert protocol.value("loss") == {"kl": {"temperature": 20.0, "scale_t2": False}}
                assert protocol.value("resized_crop.min_area") == 0.08


@pytest.mark.parametrize(
    ("dataset", "ipc", "epochs", "batch"),
    [
        ("imagenet1k", 1, 300, 15), ("imagenet1k", 10, 300, 50), ("imagenet1k", 50, 300, 100),
        ("tinyimagenet", 10, 300, 50), ("tinyimagenet", 50, 300, 100),
        ("cifar10", 1, 400, 10), ("cifar10", 10, 400, 50), ("cifar100", 1, 400, 30),
        ("cifar100", 10, 400, 100), ("cifar100", 50, 400, 200),
        ("imagewoof", 10, 2000, 50), ("imagewoof", 50, 1500, 100), ("imagewoof", 100, 1000, 100),
    ],
)  # fmt: skip
def test_d3hr(dataset, ipc, epochs, batch):
    protocol, hard = at("d3hr", dataset, ipc), dataset == "imagewoof"
    assert (protocol.epochs, protocol.batch_size, protocol.zeta, protocol.schedule) == (epochs, batch, 2.0, "cosine")
    assert (protocol.optimizer, protocol.lr, protocol.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (protocol.labels, protocol.extra_student_forward) == ("hard" if hard else "soft", not hard)
    loss = {"ce": {"hard_mix": "weighted"}} if hard else {"kl": {"temperature": 20.0, "scale_t2": False}}
    assert protocol.value("loss") == loss
    assert steps(protocol) == ["resized_crop", "flip", "mixup" if hard else "cutmix"]
    assert protocol.value("resized_crop.min_area") == 0.08 and protocol.value("mixup.alpha") == (1.0 if hard else None)
    assert protocol.test_resize == (72 if dataset == "tinyimagenet" else 0)


@pytest.mark.parametrize(
    ("student", "lr"),
    [
        ("resnet50", 1e-3), ("convnet", 1e-3), ("efficientnet_b0", 2e-3), ("mobilenet_v2", 2.5e-3), ("alexnet", 1e-4),
        ("vit_b_16", 1e-4), ("swin_v2_t", 1e-4),
    ],
)  # fmt: skip
def test_rates_of_d3hr(student, lr):
    assert {at("d3hr", dataset, 10, student).lr for dataset in CLASSES} == {lr}


def test_what_a_preset_does_otherwise_is_on_record():
    said = {name: "; ".join(rule.deviates) for name, rule in presets().items()}
    assert "momentum goes on where the rate drops" in said["dc-bench"]
    assert "drops of the rate come an epoch later" in said["minimax-hard"]
    assert "descriptions of the protocol elsewhere have 200 epochs" in said["sre2l-tiny"]


def test_presets_whose_authors_store_labels_in_fp16_do_so():
    complete = [name for name, rule in presets().items() if not rule.incomplete]
    found = {name: at(name, "cifar100", 10) for name in complete}
    stored = {name for name, protocol in found.items() if protocol.soft_labels == "stored"}
    assert stored == {"sre2l", "d4m", "edc", "gvbsm", "gvbsm-small"}
    assert {found[name].label_dtype for name in stored} == {"fp16"}


def test_the_other_incomplete_ones_name_what_is_missing():
    assert [name for name, rule in presets().items() if rule.incomplete] == ["cvdd", "dc-bench-augmented", "hald"]
    with pytest.raises(Unsupported, match="augmentations with one draw for all images of a batch"):
        at("dc-bench-augmented", "cifar10", 10)
