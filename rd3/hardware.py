"""Names and numbers of this machine's compute devices.  Loads torch only if there may be a GPU."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Literal, NamedTuple

from rd3.device import bf16_disabled_by_environment
from rd3.errors import BadValue

_CPUINFO = Path("/proc/cpuinfo")
_DRIVERS = [Path(name) for name in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")]
"""One of these exists where a GPU can be used: on Linux, in a container, under WSL."""
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
"""Names of bf16 instruction sets in ``/proc/cpuinfo``, on Linux."""


class Hardware(NamedTuple):
    """Devices of one kind on one machine."""

    kind: Literal["cpu", "cuda"]
    name: str
    count: int  # type: ignore[assignment]  # replaces tuple.count
    """Number of threads that this process may use, or of GPUs."""
    bf16: bool
    """Whether bf16 is supported in hardware and not disabled by the environment; False if unknown."""


def torch_version() -> str:
    """Version of torch, without loading it."""
    return importlib.metadata.version("torch")


def hardware(kind: str | None = None) -> Hardware:
    """The GPUs of this machine if it has any, else its processor; ``kind`` selects ``cpu`` or ``cuda``.

    Raises :class:`BadValue` for ``cuda`` on a machine without a GPU.
    """
    gpus = _gpus() if kind != "cpu" else None
    if kind == "cuda" and gpus is None:
        raise BadValue("No CUDA device is available.", "use cpu")
    return gpus or processor()


@functools.cache
def _gpus() -> Hardware | None:
    if not any(driver.exists() for driver in _DRIVERS):  # torch takes seconds to load
        return None
    import torch

    from rd3.device import bf16_in_hardware

    if not torch.cuda.is_available():
        return None
    first = torch.device("cuda", 0)
    count = torch.cuda.device_count()
    return Hardware("cuda", torch.cuda.get_device_name(first), count, bool(bf16_in_hardware(first)))


def cores() -> int:
    """Number of CPU cores that this process may use.

    By affinity, by the quota of its container (rounded up), and by Slurm, which does not confine jobs on every cluster.
    """
    from joblib import cpu_count

    allocated = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")]
    return min([int(cpu_count()), *(int(text) for text in allocated if text.isdecimal() and int(text))])


@functools.cache
def processor() -> Hardware:
    """The CPU; the name includes family and model, as virtual machines report one name for many processors."""
    facts = _cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        name += f", family {facts['cpu family']} model {facts.get('model', '?')}"
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return Hardware("cpu", name, cores(), bool(flags & _BF16_FLAGS) and not bf16_disabled_by_environment())


def _cpu_facts() -> dict[str, str]:
    """Fields of the first processor in ``/proc/cpuinfo``; empty on other systems."""
    if not _CPUINFO.exists():
        return {}
    lines = (line.partition(":") for line in _CPUINFO.read_text().partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _colon, value in lines}
