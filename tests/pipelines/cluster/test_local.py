"""The Ray of this process: where its messages go."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.cluster.local import stderr_apart


def test_a_log_that_another_driver_with_this_home_has_replaced_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """That driver has deleted the file of this one; it may have ended, and deleted its own."""
    log = tmp_path / "ray.log"
    with open(2, "w", closefd=False) as standard_error:
        monkeypatch.setattr(sys, "stderr", standard_error)
        with stderr_apart(log):
            log.unlink()
        with stderr_apart(log):
            log.unlink()
            log.touch()
        assert log.exists()
        with stderr_apart(log):
            pass
        assert not log.exists()
        assert sys.stderr is standard_error
