"""Calibrations beside the ledger, one for a device and a version of torch: ``calibrations/<device>-<torch>.json``."""

from __future__ import annotations

import re

from rd3.errors import DataCorrupt
from rd3.planning.calibration import Calibration
from tracking.ledger.object_store import Documents

_FOLDER = "calibrations/"


def _name(device: str, torch: str) -> str:
    return f"{_FOLDER}{re.sub('[^A-Za-z0-9.]+', '-', f'{device}-{torch}')}.json"


def keep(documents: Documents, calibration: Calibration) -> str:
    """Replaces an older one of this device and torch; its name below the artifact root."""
    name = _name(calibration.device, calibration.torch)
    documents.put(name, (calibration.model_dump_json(indent=1) + "\n").encode())
    return name


def find(documents: Documents, device: str, torch: str) -> Calibration | None:
    """That of this device and this torch, or None."""
    return _read(documents, _name(device, torch))


def known(documents: Documents) -> list[Calibration]:
    """All, the newest first."""
    found = [_read(documents, name) for name in documents.names(_FOLDER)]
    return sorted((one for one in found if one is not None), key=lambda one: one.measured_at, reverse=True)


def _read(documents: Documents, name: str) -> Calibration | None:
    raw = documents.get(name)
    if raw is None:
        return None
    try:
        return Calibration.model_validate_json(raw)
    except ValueError:
        raise DataCorrupt(
            f"Calibration {documents.root}/{name} is not readable.", "measure it again: rd3 calibrate"
        ) from None
