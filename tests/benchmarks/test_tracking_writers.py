"""The benchmark of concurrent writers ends if one of them does."""

from __future__ import annotations

import sys

import pytest

from benchmarks import tracking_writers


@pytest.mark.timeout(120)
def test_a_writer_that_dies_before_the_start_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_writers, "write", len)  # fails at once, as it takes one argument
    monkeypatch.setattr(sys, "argv", ["tracking_writers.py", "--writers", "2"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit, match="a writer failed"):
        tracking_writers.main()
