"""Calibrations stored with the ledger, one per device and torch version: ``calibrations/<device>-<torch>.json``."""

from __future__ import annotations

import re

from rd3.planning.calibration import Calibration
from tracking.ledger.object_store import ObjectStore, read_as

_FOLDER = "calibrations/"


def _name(device: str, torch: str) -> str:
    return f"{_FOLDER}{re.sub('[^A-Za-z0-9.]+', '-', f'{device}-{torch}')}.json"


def keep(objects: ObjectStore, calibration: Calibration) -> str:
    """Store a calibration, replacing an older one of its device and torch version; returns the object's name."""
    name = _name(calibration.device, calibration.torch)
    objects.put(name, (calibration.model_dump_json(indent=1) + "\n").encode())
    return name


def find(objects: ObjectStore, device: str, torch: str) -> Calibration | None:
    """The calibration of this device and torch version, or None."""
    return _read(objects, _name(device, torch))


def known(objects: ObjectStore) -> list[Calibration]:
    """All stored calibrations, newest first."""
    calibrations = [_read(objects, name) for name in objects.names(_FOLDER)]
    return sorted((one for one in calibrations if one is not None), key=lambda one: one.measured_at, reverse=True)


def _read(objects: ObjectStore, name: str) -> Calibration | None:
    return read_as(objects, name, Calibration.model_validate_json, "Calibration", "measure again: rd3 calibrate")
