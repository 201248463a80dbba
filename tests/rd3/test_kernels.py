"""What cuDNN may choose by itself while something is made."""

from __future__ import annotations

import pytest
import torch

from rd3.kernels import repeatable_kernels
from rd3.methods import METHODS
from rd3.testing import ToyDataset, trial_recipe, trial_set


def _flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic


def test_they_are_put_back_even_after_an_error():
    before = _flags()
    with pytest.raises(ZeroDivisionError), repeatable_kernels():
        assert _flags() == (False, True)
        _ = 1 / 0
    assert _flags() == before


def test_a_method_works_under_them(tmp_path, monkeypatch):
    random, seen = METHODS.get("random"), []
    make = random.make

    def spy(self, block, ctx):
        seen.append(_flags())
        return make(self, block, ctx)

    monkeypatch.setattr(random, "make", spy)
    dataset = ToyDataset(side=16)
    with torch.backends.cudnn.flags(enabled=True, deterministic=False, allow_tf32=True):
        trial_set([trial_recipe("random", dataset, 2)], dataset, (), tmp_path, tmp_path / "made")
        assert _flags() == (True, False)
    assert set(seen) == {(False, True)}
