"""What the doctor concludes from what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import checkup
from rd3.datasets import Roots
from rd3.errors import StoreError
from tracking.place import Place


@pytest.mark.parametrize(
    ("ahead_s", "state", "detail"),
    [
        (0.9, "ok", "agrees with the S3 server x"),
        (-4.0, "ok", "agrees with the S3 server x"),
        (6.0, "warning", "The clock of this machine is 6 s ahead of that of the S3 server x. Fix: set the clock"),
        (-31.0, "wrong", "The clock of this machine is 31 s behind that of the S3 server x. Fix: set the clock"),
    ],
)
def test_clocks(ahead_s: float, state: str, detail: str):
    row = checkup._clock("clock", lambda: ahead_s, "the S3 server x")
    assert (row.state, row.detail[: len(detail)]) == (state, detail)


def test_a_server_that_does_not_tell_the_time():
    def down() -> float:
        raise StoreError("The S3 server x does not answer.", "set AWS_ENDPOINT_URL")

    row = checkup._clock("clock", down, "x")
    assert row == ("clock", "wrong", "The S3 server x does not answer. Fix: set AWS_ENDPOINT_URL")


def test_versions_that_differ():
    assert checkup._same("ray", "2.60.0", "2.60.0") == ("ray", "ok", "2.60.0")
    row = checkup._same("ray", "2.60.0", "2.50.0")
    assert row == ("ray", "wrong", "2.50.0 there, 2.60.0 on the driver. Fix: install the same on both")


def test_a_home_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    row = checkup._disk(tmp_path / "file" / "home")
    assert row.state == "wrong"
    assert row.detail.startswith(f"{tmp_path}/file/home cannot be written (")
    assert "set RD3_HOME" in row.detail


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert checkup._disk(tmp_path).state == "ok"
    monkeypatch.setattr(checkup, "_LEAST_GIB", 1e9)
    row = checkup._disk(tmp_path)
    assert (row.state, "set RD3_HOME to another disk" in row.detail) == ("wrong", True)


def test_a_package_that_is_not_there():
    assert checkup._package("rd3-nothing") == ("rd3-nothing", "wrong", "not installed; pip install rd3-nothing")


def test_a_worker_that_does_not_share_the_drivers_folders(tmp_path: Path):
    """What the driver put there is not seen; nothing is made there, and both variables are named."""
    far = tmp_path / "of_the_driver"
    place = Place(f"sqlite:///{far / 'mlflow.db'}", str(far / "artifacts"), tmp_path / "home")
    marks = [far / "artifacts" / ".nodes-1", far / ".nodes-1"]
    rows = checkup.look_around("10.0.0.2", place, Roots(None, tmp_path / "home"), {}, marks)
    told = [row.detail for row in rows if row.what == "shared folder"]
    assert [row.state for row in rows if row.what in ("shared folder", "tracking", "artifacts root")] == ["wrong"] * 2
    assert "Node 10.0.0.2 does not see the artifact folder" in told[0] and "set RD3_ARTIFACTS to s3://" in told[0]
    assert "does not see the tracking database" in told[1] and "set MLFLOW_TRACKING_URI to a server" in told[1]
    assert not far.exists()
