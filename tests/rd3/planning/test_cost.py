"""Costs against closed forms, and the shipped table against networks that are really counted."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from rd3.datasets import dataset_info
from rd3.methods import Cost, resolve_settings
from rd3.models import NETWORKS
from rd3.models import forward_cost as counted
from rd3.planning.cost import CPU_THREAD, Rates, Work, forward_cost, forward_table
from rd3.planning.forecast import work
from rd3.protocol import resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, TeacherRecipe, TeacherTraining

DIGITS = dataset_info("digits")
DATA = Data(name="digits", fingerprint="f")


def teacher(epochs: int = 3) -> TeacherRecipe:
    training = TeacherTraining(epochs=epochs, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4, crop="pad")
    return TeacherRecipe(
        data=DATA,
        classes=DIGITS.classes,
        network="resnet18_w16",
        resolution=32,
        normalisation=DIGITS.normalisation,
        training=training,
        precision="bf16",
        seed=0,
    )


def evaluation(labels: str = "soft", **fields: object) -> EvaluationRecipe:
    overrides = {"labels": labels, **fields}
    return EvaluationRecipe(
        set="s",
        teachers=("t",) if labels == "soft" else (),
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=30, overrides=overrides),
        student="convnet",
        student_seed=0,
        data=DATA,
        classes=DIGITS.classes,
        resolution=32,
        normalisation=DIGITS.normalisation,
    )


def made(method: str, ipc: int = 3, **settings: object) -> SetRecipe:
    resolved = resolve_settings(method, DIGITS, ipc, settings)
    return SetRecipe(
        method=method,
        version=1,
        settings=resolved.model_dump(mode="json"),
        data=DATA,
        classes=DIGITS.classes,
        resolution=32,
        ipc=ipc,
        teachers=("t",),
        set_seed=0,
    )


PARENTS = {"t": teacher(), "s": made("random", 3)}


def test_the_shipped_table_is_what_the_networks_cost():
    chosen = ("resnet18", "resnet18_w16", "convnet", "convnet_d1", "convnet_d2", "convnet_w32", "wrn_16_2", "alexnet")
    small = [name for name in NETWORKS.names() if name in chosen]
    for name, sides in forward_table(small).items():
        for side in sides:
            assert forward_cost(name, 1000, int(side)) == counted(name, 1000, int(side)), (name, side)


def test_resnet18_is_as_heavy_as_published():
    # 1.82 billion multiply-adds at 224 pixels (torchvision's table of ResNet18_Weights)
    assert forward_cost("resnet18", 1000, 224).flops == pytest.approx(2 * 1.814e9, rel=5e-3)


def test_every_network_of_the_table_is_shipped():
    from rd3.planning.cost import _table

    assert set(NETWORKS.names()) <= set(_table())


def test_a_network_outside_the_table_is_counted():
    assert forward_cost("timm:resnet18", 10, 32) == counted("timm:resnet18", 10, 32)


def test_a_teacher_costs_three_forward_passes_an_image_and_epoch():
    forward = counted("resnet18_w16", 10, 32)
    done = work(teacher(), DIGITS, PARENTS.__getitem__)
    assert done.cost == (3 * 3 * DIGITS.train_count + DIGITS.test_count) * forward
    assert done.steps == 3 * math.ceil(DIGITS.train_count / 128)
    assert done.precision == "bf16"


def test_an_imported_teacher_costs_nothing():
    fields = teacher().model_dump() | {"training": None, "weights": "w"}
    assert work(TeacherRecipe(**fields), DIGITS, PARENTS.__getitem__) == Work()


def test_an_evaluation_costs_student_and_teacher_and_one_test():
    student, label = counted("convnet", 10, 32), counted("resnet18_w16", 10, 32)
    soft = work(evaluation(), DIGITS, PARENTS.__getitem__)
    assert soft.cost == 400 * 30 * (3 * student + label) + DIGITS.test_count * student
    assert soft.steps == 400 * 1
    hard = work(evaluation("hard", test_epochs=(1, 2)), DIGITS, PARENTS.__getitem__)
    assert hard.cost == (400 * 30 * 3 + 3 * DIGITS.test_count) * student
    extra = work(evaluation(extra_student_forward=True), DIGITS, PARENTS.__getitem__)
    assert extra.cost == soft.cost + 400 * 30 * student
    once = work(evaluation(soft_labels="once", label_dtype="fp32"), DIGITS, PARENTS.__getitem__)
    assert once.cost == soft.cost - 399 * 30 * label


def test_sets_cost_what_their_method_says():
    assert work(made("random"), DIGITS, PARENTS.__getitem__) == Work()
    few, many = (work(made("sre2l", iterations=n), DIGITS, PARENTS.__getitem__).cost for n in (10, 20))
    assert many == 2 * few
    assert few.flops > 0 and few.bytes > 0


def test_seconds_are_start_steps_operations_and_traffic():
    rates = Rates("r", fp32=100.0, bf16=200.0, bytes=10.0, step_s=0.5, start_s=1.0)
    assert rates.seconds(Work(Cost(400.0, 30.0), 4)) == 1 + 2 + 4 + 3
    assert rates.seconds(Work(Cost(400.0, 30.0), 4, "bf16")) == 1 + 2 + 2 + 3
    assert CPU_THREAD.bf16 > CPU_THREAD.fp32


def test_costs_load_no_torch():
    code = "import sys; from rd3.planning.cost import forward_cost; forward_cost('resnet18', 10, 32)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
