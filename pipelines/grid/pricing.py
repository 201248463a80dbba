"""Rates for cost estimates: from a calibration in the ledger, else the built-in ones.  Does not measure."""

from __future__ import annotations

from typing import NamedTuple

from rd3.errors import UnknownName
from rd3.hardware import hardware, torch_version
from rd3.planning.calibration import Calibration
from rd3.planning.cost import Rates, shipped_rates
from tracking.ledger import calibrations
from tracking.ledger.object_store import ObjectStore


class Pricing(NamedTuple):
    """Rates for a plan, and their source."""

    rates: Rates
    devices: int
    """Number of devices: CPU threads or GPUs of this machine, or 1 for a device of another machine."""
    source: str
    """One line for people."""


def pricing(objects: ObjectStore, device: str | None = None) -> Pricing:
    """Rates of the device that recipes will run on: by default this machine's GPUs if it has any, else its CPU.

    ``device``: ``cpu``, ``cuda``, or the name (or a prefix of one name) of another calibrated device.  Raises
    :class:`UnknownName` for a name without a calibration.
    """
    if device is not None and device not in ("cpu", "cuda"):
        return _named(objects, device)
    here, torch = hardware(device), torch_version()
    found = calibrations.find(objects, here.name, torch)
    if found is not None:
        return Pricing(found.rates, here.count, _source(found))
    rates = shipped_rates(here.kind, here.bf16)
    others = [one for one in calibrations.known(objects) if (one.device, one.torch) != (here.name, torch)]
    unused = f"; not used: {_listed(others)}, for another device or torch version" if others else ""
    source = (
        f"built-in rates of {rates.name}, accurate to a factor of {rates.spread:g}: the ledger has no "
        f"calibration of {here.name} with torch {torch}; run `rd3 calibrate` (20 s){unused}"
    )
    return Pricing(rates, here.count, source)


def _named(objects: ObjectStore, name: str) -> Pricing:
    known = calibrations.known(objects)
    whole = [one for one in known if one.device.lower() == name.lower()]  # it may also begin the name of another
    found = whole or [one for one in known if one.device.lower().startswith(name.lower())]
    if len({one.device for one in found}) != 1:
        what = f"{len(found)} calibrations of devices that start" if found else "no calibration of a device that starts"
        there = f"it has {_listed(found or known)}" if known else "it has none"
        raise UnknownName(
            f"The ledger {objects.root} has {what} with {name!r}; {there}.",
            f"{'choose one of these, or ' if known else ''}run `rd3 calibrate` on that machine with this ledger",
        )
    torch = torch_version()
    chosen = next((one for one in found if one.torch == torch), found[0])  # else the newest
    here = next((one for one in (hardware("cpu"), hardware()) if one.name == chosen.device), None)
    elsewhere = "" if here else ", which this machine does not have"
    other = "" if chosen.torch == torch else f"; torch here is {torch}"
    return Pricing(chosen.rates, here.count if here else 1, f"{_source(chosen)}{elsewhere}{other}")


def _source(found: Calibration) -> str:
    return f"calibration of {_device_and_torch(found)}, {found.measured_at[:10]}"


def _device_and_torch(calibration: Calibration) -> str:
    return f"{calibration.device} with torch {calibration.torch}"


def _listed(found: list[Calibration]) -> str:
    more = f" and {len(found) - 3} more" if found[3:] else ""
    return " and ".join(map(_device_and_torch, found[:3])) + more
