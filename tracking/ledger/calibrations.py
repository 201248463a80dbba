"""Calibrations beside the ledger, one for a device and a version of torch: ``calibrations/<device>-<torch>.json``."""

from __future__ import annotations

import re

from rd3.errors import DataCorrupt
from rd3.planning.calibration import Calibration
from tracking.ledger.object_store import ObjectStore

_FOLDER = "calibrations/"


def _name(device: str, torch: str) -> str:
    return f"{_FOLDER}{re.sub('[^A-Za-z0-9.]+', '-', f'{device}-{torch}')}.json"


def keep(objects: ObjectStore, calibration: Calibration) -> str:
    """Replaces an older one of this device and torch; its name below the artifact root."""
    name = _name(calibration.device, calibration.torch)
    objects.put(name, (calibration.model_dump_json(indent=1) + "\n").encode())
    return name


def find(objects: ObjectStore, device: str, torch: str) -> Calibration | None:
    """That of this device and this torch, or None."""
    return _read(objects, _name(device, torch))


def known(objects: ObjectStore) -> list[Calibration]:
    """All, the newest first."""
    found = [_read(objects, name) for name in objects.names(_FOLDER)]
    return sorted((one for one in found if one is not None), key=lambda one: one.measured_at, reverse=True)


def _read(objects: ObjectStore, name: str) -> Calibration | None:
    raw = objects.get(name)
    if raw is None:
        return None
    try:
        return Calibration.model_validate_json(raw)
    except ValueError:
        raise DataCorrupt(
            f"Calibration {objects.root}/{name} is not readable.", "measure it again: rd3 calibrate"
        ) from None
