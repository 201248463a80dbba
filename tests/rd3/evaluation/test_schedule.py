from __future__ import annotations

import pytest

from rd3.evaluation.schedule import zeta_cosine


@pytest.mark.parametrize(
    ("zeta", "epoch", "factor"),
    [(1, 0, 1), (1, 200, 0.5), (1, 399, 1.5e-5), (2, 0, 1), (2, 200, 0.854), (2, 399, 0.502)],
)
def test_published_points(zeta, epoch, factor):
    assert zeta_cosine(epoch, 400, zeta) == pytest.approx(factor, rel=0.03 if factor < 1e-3 else 1e-3)


def test_larger_zeta_keeps_larger_rates():
    for epoch in range(1, 40):
        assert zeta_cosine(epoch, 40, 1) < zeta_cosine(epoch, 40, 1.5) < zeta_cosine(epoch, 40, 2)
