from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rd3.errors import UnknownName, Unsupported
from rd3.losses import LOSSES, LossTargets

B, C = 6, 5


def learn(name: str, student: torch.Tensor, given: LossTargets, **settings) -> torch.Tensor:
    loss = LOSSES.get(name)
    return loss(student, given, loss.Settings(**settings))


def targets(teacher: torch.Tensor | None = None, lam: float = 1.0) -> LossTargets:
    stream = torch.Generator().manual_seed(3)
    labels = torch.randint(C, (B,), generator=stream)
    return LossTargets(teacher, labels, labels[torch.randperm(B, generator=stream)], lam)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum()


@pytest.mark.parametrize("scale_t2", [False, True])
def test_kl_closed_form(scale_t2):
    student, teacher, temperature = normal(0, B, C) * 9, normal(1, B, C) * 9, 4.0
    expected = 0.0
    for one, other in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        p, q = softmax(other / temperature), softmax(one / temperature)
        expected += float((p * np.log(p / q)).sum()) / B
    found = learn("kl", student, targets(teacher), temperature=temperature, scale_t2=scale_t2)
    assert float(found) == pytest.approx(expected * (temperature**2 if scale_t2 else 1), rel=1e-5)


def test_kl_of_identical_logits_is_zero_and_of_random_ones_small():
    logits = normal(0, 64, 1000) * 2
    assert float(learn("kl", logits, targets(logits))) == pytest.approx(0, abs=1e-6)
    found = float(learn("kl", logits, targets(normal(1, 64, 1000) * 2)))
    assert found == pytest.approx(2**2 / 400, rel=0.1)


def test_mse_gt_leaves_the_hard_term_when_logits_agree():
    logits, given = normal(0, B, C), targets()
    same = LossTargets(logits, given.labels, given.labels_mixed, 0.3)
    hard = -np.mean([np.log(softmax(row)[label]) for row, label in zip(logits.numpy(), given.labels, strict=True)])
    assert float(learn("mse_gt", logits, same, gamma=0.025)) == pytest.approx(0.025 * hard, rel=1e-5)
    shifted = LossTargets(logits + 2, given.labels, given.labels_mixed, 0.3)
    assert float(learn("mse_gt", logits, shifted, gamma=0.0)) == pytest.approx(4)


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_mse_gt_against_a_loop(lam):
    student, teacher, given = normal(0, B, C) * 3, normal(1, B, C) * 3, targets(lam=lam)
    expected = 0.0
    for own, other, y in rows(student, teacher, labels=given.labels):
        expected += sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) / (B * C)
        expected -= 0.15 * np.log(softmax(own)[y]) / B
    found = learn("mse_gt", student, replace(given, teacher_logits=teacher), gamma=0.15)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hard_mix", ["weighted", "base"])
def test_ce_under_cutmix_against_a_loop(hard_mix):
    logits, given = normal(0, B, C), targets(lam=0.3)
    share = 0.3 if hard_mix == "weighted" else 1.0
    expected = 0.0
    for row, own, pasted in zip(logits.double().numpy(), given.labels, given.labels_mixed, strict=True):
        log_p = np.log(softmax(row))
        expected -= (share * log_p[own] + (1 - share) * log_p[pasted]) / B
    found = learn("ce", logits, given, hard_mix=hard_mix)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def rows(*logits: torch.Tensor, labels: torch.Tensor):
    """Row by row in float64: each logits tensor's row, then the label."""
    return zip(*(each.double().numpy() for each in logits), labels.tolist(), strict=True)


@pytest.mark.parametrize("epoch", [1, 3, 40])
def test_dkd_against_a_loop(epoch):
    student, teacher, given = normal(0, B, C) * 3, normal(1, B, C) * 3, targets()
    expected = 0.0
    for own, other, y in rows(student, teacher, labels=given.labels):
        p, q = softmax(other / 4), softmax(own / 4)
        target = p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
        rest_p, rest_q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        among = (rest_p * np.log(rest_p / rest_q)).sum()
        hard = -np.log(softmax(own)[y])
        expected += (0.5 * hard + min(epoch / 20, 1) * 16 * (2 * target + 8 * among)) / B
    given = LossTargets(teacher, given.labels, given.labels_mixed, 1.0, epoch)
    found = learn("dkd", student, given, alpha=2.0, beta=8.0, ce_weight=0.5)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_nkd_against_a_loop():
    student, teacher, given = normal(0, B, C) * 3, normal(1, B, C) * 3, targets()
    expected = 0.0
    for own, other, y in rows(student, teacher, labels=given.labels):
        target = softmax(other)[y] * np.log(softmax(own)[y])
        rest = (softmax(np.delete(other, y) / 2) * np.log(softmax(np.delete(own, y) / 2))).sum()
        expected -= (np.log(softmax(own)[y]) + target + 1.5 * 4 * rest) / B
    found = learn("nkd", student, LossTargets(teacher, given.labels, given.labels_mixed, 1.0), temperature=2.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_lskd_against_a_loop_and_does_not_see_shift_or_scale():
    student, teacher, given = normal(0, B, C) * 3, normal(1, B, C) * 3, targets()
    given = LossTargets(teacher, given.labels, given.labels_mixed, 1.0)
    expected = 0.0
    for own, other, y in rows(student, teacher, labels=given.labels):
        p, q = (softmax((z - z.mean()) / z.std(ddof=1) / 2) for z in (other, own))
        expected += (9 * 4 * (p * np.log(p / q)).sum() - 0.1 * np.log(softmax(own)[y])) / B
    assert float(learn("lskd", student, given)) == pytest.approx(expected, rel=1e-5)
    plain, moved = (learn("lskd", each, given, ce_weight=0.0) for each in (student, 5 * student - 3))
    assert float(moved) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("name", ["dkd", "nkd", "lskd"])
def test_the_target_class_of_a_mixed_image_is_that_of_its_base(name):
    student, mixed = normal(0, B, C) * 3, targets(normal(1, B, C) * 3, lam=0.3)
    assert (mixed.labels != mixed.labels_mixed).any()
    alone = replace(mixed, labels_mixed=mixed.labels, lam=1.0)
    swapped = replace(mixed, labels=mixed.labels_mixed, labels_mixed=mixed.labels, lam=0.7)
    assert float(learn(name, student, mixed)) == float(learn(name, student, alone))
    assert float(learn(name, student, mixed)) != pytest.approx(float(learn(name, student, swapped)), rel=1e-3)


@pytest.mark.parametrize("name", ["kl", "mse_gt", "ce", "dkd", "nkd", "lskd"])
def test_gradients_are_those_of_finite_differences(name):
    logits, given = normal(0, B, C).requires_grad_(True), targets(normal(1, B, C), lam=0.3)
    learn(name, logits, given).backward()
    step = 1e-2
    for row, column in ((0, 0), (1, int(given.labels[1])), (4, 3)):
        moved = torch.zeros(B, C)
        moved[row, column] = step
        with torch.no_grad():
            slope = (learn(name, logits + moved, given) - learn(name, logits - moved, given)) / (2 * step)
        assert float(logits.grad[row, column]) == pytest.approx(float(slope), rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("name", ["kl", "mse_gt", "ce", "dkd", "nkd", "lskd"])
def test_losses_compute_in_fp32(name):
    logits = normal(0, B, C).bfloat16()
    given = targets(normal(1, B, C).bfloat16(), lam=0.3)
    plain = learn(name, logits, given)
    on_device = replace(given, lam=torch.tensor(0.3), epoch=torch.tensor(1.0))  # as on CUDA
    assert plain.dtype == learn(name, logits, on_device).dtype == torch.float32
    assert float(learn(name, logits, on_device)) == pytest.approx(float(plain), rel=1e-6)


def test_registry_knows_them_without_torch():
    code = (
        "import sys; from rd3.losses import LOSSES; names = LOSSES.names(); assert 'torch' not in sys.modules; "
        "assert all(LOSSES.get(name).__doc__.splitlines()[0] for name in names); print(names)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"kl", "mse_gt", "ce"} <= set(eval(answer))


def test_a_loss_of_two_views_is_unsupported_with_the_reason():
    assert "crld" not in LOSSES
    assert LOSSES.unsupported() == {"crld": "it compares two views of every image, and a protocol trains on one"}
    with pytest.raises(Unsupported, match="Loss 'crld' is unsupported: it compares two views"):
        LOSSES.get("crld")


def test_unknown_loss_is_named():
    with pytest.raises(UnknownName, match="'mse_gt'"):
        LOSSES.get("msegt")
