"""What the doctor concludes from what it sees."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from pipelines.cluster import doctor as checkup
from pipelines.settings import Session
from rd3.datasets import Finding, Roots
from rd3.device import bf16_in_hardware
from rd3.errors import StoreError, TrackingError
from tests.tracking.servers import s3_error, serving
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
        raise StoreError("The S3 server x does not respond.", "set AWS_ENDPOINT_URL")

    row = checkup._clock("clock", down, "x")
    assert row == ("clock", "wrong", "The S3 server x does not respond. Fix: set AWS_ENDPOINT_URL")


def test_a_bucket_that_does_not_exist_is_not_blamed_on_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refused(_place: Place) -> None:
        raise TrackingError("MLflow at http://x failed: 500 Server Error.", "check the server")

    monkeypatch.setattr(checkup, "probe_artifacts", refused)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with serving(404, s3_error("NoSuchBucket")) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        row = checkup._files_through_tracking(Place("http://x", "s3://later/rd3", tmp_path))
        assert row.state == "wrong"
        assert f"{url} has no bucket 'later'. Fix: run `rd3 infra init`" in row.detail
    row = checkup._files_through_tracking(Place("http://x", str(tmp_path), tmp_path))
    assert row.detail == "MLflow at http://x failed: 500 Server Error. Fix: check the server"


@pytest.mark.parametrize("root", ["gs://bucket/rd3", "s3://bucket/rd3"])
def test_an_artifact_root_that_cannot_be_used_is_one_row_among_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")  # without http://
    monkeypatch.setattr("rd3.datasets.doctor", lambda _roots: [Finding("digits", "ok", ())])
    here = Session(f"sqlite:///{tmp_path / 'mlflow.db'}", root, tmp_path)
    states = {row.what: row.state for row in checkup.rows_here(here)}
    assert (states["tracking"], states["ledger"], states["data digits"]) == ("ok", "wrong", "ok")
    monkeypatch.setattr(checkup, "probe_artifacts", lambda _place: None)
    assert checkup._files_through_tracking(Place("http://x", root, tmp_path)).state == "ok"


def test_versions_that_differ():
    assert checkup._same("ray", "2.60.0", "2.60.0") == ("ray", "ok", "2.60.0")
    row = checkup._same("ray", "2.60.0", "2.50.0")
    assert row == ("ray", "wrong", "2.50.0 there, 2.60.0 on the driver. Fix: install the same version on both")


def test_a_home_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    row = checkup._disk(tmp_path / "file" / "home")
    assert row.state == "wrong"
    assert row.detail.startswith(f"{tmp_path}/file/home is not writable (")
    assert "set RD3_HOME" in row.detail


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert checkup._disk(tmp_path).state == "ok"
    monkeypatch.setattr(checkup, "_LEAST_GIB", 1e9)
    row = checkup._disk(tmp_path)
    assert (row.state, "set RD3_HOME to another disk" in row.detail) == ("wrong", True)


def test_a_damaged_dataset_comes_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = [
        Finding("cifar10", "wrong", ("/d",), message="The file x is damaged.", fix="download it again"),
        Finding("svhn", "missing", ("/d",), message="SVHN is not here.", fix="put it there"),
    ]
    monkeypatch.setattr("rd3.datasets.doctor", lambda _roots: found)
    details = [row.detail for row in checkup._data(Roots(None, tmp_path))]
    assert details == ["The file x is damaged. Fix: download it again", "SVHN is not here."]


def test_a_package_that_is_not_there():
    assert checkup._package("rd3-nothing") == ("rd3-nothing", "wrong", "not installed; pip install rd3-nothing")


def test_a_worker_that_does_not_share_the_drivers_folders(tmp_path: Path):
    """What the driver put there is not seen; nothing is made there, and both variables are named."""
    far = tmp_path / "of_the_driver"
    place = Place(f"sqlite:///{far / 'mlflow.db'}", str(far / "artifacts"), tmp_path / "home")
    markers = [far / "artifacts" / ".nodes-1", far / ".nodes-1"]
    rows = checkup.look_around("10.0.0.2", place, {}, markers)
    told = [row.detail for row in rows if row.what == "shared folder"]
    assert [row.state for row in rows if row.what in ("shared folder", "tracking", "artifacts root")] == ["wrong"] * 2
    assert "Node 10.0.0.2 cannot see the artifact folder" in told[0] and "set RD3_ARTIFACTS to s3://" in told[0]
    assert "cannot see the tracking database" in told[1] and "set MLFLOW_TRACKING_URI to a server" in told[1]
    assert not far.exists()


@pytest.mark.parametrize(
    ("found", "isa", "precision"),
    [
        ({"avx512_bf16": True}, "", "bf16"),
        ({"avx512_bf16": True}, "avx2", "fp32"),
        ({"avx512_bf16": True}, "DEFAULT", "bf16"),
        ({"architecture": "aarch64", "bf16": True}, "", "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "", "fp32"),
    ],
)
def test_auto_precision_on_a_processor(monkeypatch: pytest.MonkeyPatch, found: dict, isa: str, precision: str):
    """Also where oneDNN is kept from using what the processor has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    row = checkup._devices()
    assert row.state == "ok" and row.detail.startswith("CPU only, ")
    assert row.detail.endswith(f"precision auto is {precision} here")


def test_a_torch_that_cannot_tell_bf16(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    row = checkup._devices()
    assert row.detail.endswith("precision auto is fp32 here")


@pytest.mark.parametrize(("majors", "said"), [([9], "bf16"), ([8, 8], "bf16"), ([9, 7], "bf16 or fp32")])
def test_auto_precision_on_gpus(monkeypatch: pytest.MonkeyPatch, majors: list[int], said: str):
    """Each is asked, as the current device."""
    current: list[torch.device] = []

    class Current:
        def __init__(self, device: torch.device):
            current.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_error: object) -> None: ...

    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: len(majors),
        "get_device_name": lambda device: f"card {device.index}",
        "device": Current,
        "is_bf16_supported": lambda including_emulation: including_emulation or majors[current[-1].index] >= 8,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    row = checkup._devices()
    assert row.detail.startswith("card 0") and row.detail.endswith(f"precision auto is {said} here")


def test_what_this_processor_says_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Linux on x86 to ask")
    flags = Path("/proc/cpuinfo").read_text()
    assert bf16_in_hardware(torch.device("cpu")) == ("avx512_bf16" in flags or "amx_bf16" in flags)
