from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from rd3.errors import UnknownName
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


@pytest.mark.parametrize("name", ["kl", "mse_gt", "ce"])
def test_losses_compute_in_fp32(name):
    logits = normal(0, B, C).bfloat16()
    assert learn(name, logits, targets(normal(1, B, C).bfloat16())).dtype == torch.float32


def test_registry_knows_them_without_torch():
    code = (
        "import sys; from rd3.losses import LOSSES; names = LOSSES.names(); assert 'torch' not in sys.modules; "
        "assert all(LOSSES.get(name).__doc__.splitlines()[0] for name in names); print(names)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"kl", "mse_gt", "ce"} <= set(eval(answer))


def test_unknown_loss_is_named():
    with pytest.raises(UnknownName, match="'mse_gt'"):
        LOSSES.get("msegt")
