"""The device that work runs on: its name, its precision, its kernels, and how much memory work on it has held."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rd3.errors import BadValue

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rd3.protocol import Precision


def usable_device(name: torch.device | str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` ... as torch has it; raises :class:`BadValue` for one that this process lacks."""
    import torch

    here = {"cpu"}
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        kind = accelerator.type
        here |= {kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))}
    if str(name) not in here:
        raise BadValue(f"There is no device {str(name)!r} here.", f"use {' or '.join(sorted(here))}")
    return torch.device(name)


_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` with which oneDNN, PyTorch's library on x86, uses no bf16 instructions."""


def bf16_left_out() -> bool:
    """Whether oneDNN is kept from bf16 instructions that the processor may have."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16


def bf16_in_hardware(device: torch.device) -> bool | None:
    """Whether ``device`` multiplies bf16 itself, or emulates it slowly; None where this torch cannot tell."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
            return supported
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    if bf16_left_out():
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def ran_precision(device: torch.device, precision: Precision) -> Literal["bf16", "fp32"]:
    """What a recipe's ``precision`` means on ``device``: ``auto`` is bf16 where it is in hardware, else fp32."""
    if precision == "auto":
        return "bf16" if bf16_in_hardware(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast at that precision; weights, statistics and losses stay fp32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def repeatable_kernels() -> AbstractContextManager[None]:
    """cuDNN takes deterministic kernels meanwhile, and does not round fp32 convolutions to TF32 as it would by default.

    For the whole process; what was set before is put back.
    """
    import torch

    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def set_memory_format(network: nn.Module, precision: str) -> None:
    """Put the network's weights in the memory format that is fastest at ``precision``, in place.

    The weights decide: convolutions hand on what they are laid out in, and take pixels as they come, to the same bits.
    That is channels last, at fp32 on a CPU alone, and except with group norms, for which PyTorch has no fast kernel in
    that format: on a CPU a training step of such a network takes three times as long, and CUDA copies back and forth.
    """
    import torch
    from torch import nn

    on_cuda = next(network.parameters()).is_cuda
    if (precision == "bf16" or not on_cuda) and not any(isinstance(one, nn.GroupNorm) for one in network.modules()):
        network.to(memory_format=torch.channels_last)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to count anew: what an earlier trial held in this process is not this one's.

    Where the system has no such thing (not Linux, not CUDA), the peak stays that of the process's whole life.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def peak_mib(device: torch.device) -> float:
    """Most memory held since the last reset, MiB: on CUDA by tensors, elsewhere by the whole process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 2**10
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
