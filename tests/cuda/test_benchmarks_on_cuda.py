"""Cases of the benchmark suite on a CUDA device, with less work; what they measure is not looked at."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench as bench_module
from benchmarks import cached_logits, layout, patch_scoring, post_evaluation, recovery, sampling, shared_views, students
from benchmarks.bench import Bench
from rd3.methods import _diffusion
from rd3.testing import ToyDataset

pytestmark = pytest.mark.cuda

NETWORK = "resnet18_w16"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Batches of four, two at once; one round."""
    monkeypatch.setattr(bench_module, "matmul_peak", lambda device, dtype: 100.0)
    monkeypatch.setattr(post_evaluation, "BATCH", 4)
    monkeypatch.setattr(cached_logits, "BATCH", 4)
    monkeypatch.setattr(cached_logits, "IMAGES", 20)
    monkeypatch.setattr(shared_views, "BATCH", 4)
    monkeypatch.setitem(students.AHEAD, "cuda", 8)
    monkeypatch.setitem(_diffusion.BATCH, "cuda", 2)
    return Bench(torch.device("cuda"), rounds=1, quick=True, network=NETWORK, out=tmp_path)


def test_recovery(bench):
    rows = recovery.iteration(bench, 32, 2, 2, iterations=2)
    assert rows[-1].variant == f"{NETWORK}, 32 px: ours, 2 blocks at once"


def test_patch_scoring(bench):
    row = patch_scoring.scoring(bench, ToyDataset(classes=2, per_class=12, side=32), ipc=2, images=12)
    assert row.batch == 12


def test_sampling(bench):
    pytest.importorskip("diffusers")
    size = sampling.Size("tiny", 32, {"width": 32, "depth": 1, "heads": 2, "patch": 8})
    assert sampling._row(bench, size, steps=2).batch == 2


def test_layout(bench):
    assert layout.row_of(bench, NETWORK, "fp32", batch=4).note.startswith("channels last x ")


@pytest.mark.parametrize("case", [cached_logits, shared_views])
def test_a_case_of_our_own_paths(case, bench):
    assert all(row.ours_s > 0 for row in case.run(bench))


def test_a_training_step(bench, monkeypatch):
    monkeypatch.setattr(post_evaluation, "WORKERS", 0)
    assert len(post_evaluation.on_gpu(bench, 32, {"one student": 1, "eight together": 2})) == 4
