"""The compute device: its name, precision, deterministic kernels, memory format and peak memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rd3.errors import BadValue
from rd3.lazy import nn, torch

if TYPE_CHECKING:
    from rd3.protocol import Precision


def usable_device(name: torch.device | str) -> torch.device:
    """The torch device called ``cpu``, ``cuda``, ``cuda:1`` ...; raises :class:`BadValue` if it is not available.

    ``mps`` is refused: it lacks float64, in which crops, layer statistics and noise schedules are computed.
    """
    available = {"cpu"}
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if str(name).partition(":")[0] == "mps":
        raise BadValue(f"Device {str(name)!r} cannot be used, as it lacks float64.", "use cpu")
    if accelerator is not None and accelerator.type != "mps":
        kind = accelerator.type
        available |= {kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))}
    if str(name) not in available:
        raise BadValue(f"Device {str(name)!r} is not available.", f"use {' or '.join(sorted(available))}")
    return torch.device(name)


_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` with which oneDNN, PyTorch's library on x86, uses no bf16 instructions."""


def bf16_disabled_by_environment() -> bool:
    """Whether the environment keeps oneDNN from using bf16 instructions."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16


def bf16_in_hardware(device: torch.device) -> bool | None:
    """Whether ``device`` supports bf16 in hardware rather than by slow emulation; None if this torch cannot tell."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
            return supported
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    if bf16_disabled_by_environment():
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def resolve_precision(device: torch.device, precision: Precision) -> Literal["bf16", "fp32"]:
    """The precision used on ``device``: ``auto`` means bf16 if supported in hardware, else fp32."""
    if precision == "auto":
        return "bf16" if bf16_in_hardware(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast if ``precision`` is bf16; weights, statistics and losses stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def repeatable_kernels() -> AbstractContextManager[None]:
    """Inside ``with``, cuDNN uses deterministic kernels and does not round fp32 convolutions to TF32, its default.

    Applies to the whole process; the previous settings are restored afterwards.
    """
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside ``with``, torch has its default modes, whatever the caller's notebook or training script has set.

    Gradients, no autocast, float32, the CPU as default device, and fp32 products that are not rounded to TF32 or bf16:
    each of them would change results or fail.  The caller's modes are restored afterwards.
    """
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # otherwise not, as torch then calls Python for every operation
            modes.enter_context(torch.device("cpu"))
        modes.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        backends: Any = torch.backends
        products = (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)
        for place, value in ((backends, "none"), (backends.mkldnn, "none"), *((each, "ieee") for each in products)):
            modes.callback(setattr, place, "fp32_precision", place.fp32_precision)
            place.fp32_precision = value
        try:
            _ = backends.cudnn.allow_tf32
        except RuntimeError:  # set for convolutions or recurrent layers alone, with which `repeatable_kernels` fails
            for place in (backends.cudnn.conv, backends.cudnn.rnn):
                modes.callback(setattr, place, "fp32_precision", place.fp32_precision)
            backends.cudnn.allow_tf32 = True
        yield


def configure_torch(threads: int) -> None:
    """Let torch use so many threads and flush denormal numbers to zero, as they are slow; for the whole process."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def set_memory_format(network: nn.Module, precision: str) -> None:
    """Convert the network's weights in place to the memory format that is fastest at ``precision``.

    Converting the weights is enough: outputs of convolutions follow them, and inputs may have any format, with bitwise
    equal results.  Always channels last, except at fp32 on CUDA, and for networks with group norms, for which PyTorch
    lacks a fast kernel in that format: a step takes three times as long on a CPU, and CUDA copies back and forth.
    """
    on_cuda = any(weight.is_cuda for weight in network.parameters())
    if (precision == "bf16" or not on_cuda) and not any(isinstance(one, nn.GroupNorm) for one in network.modules()):
        network.to(memory_format=torch.channels_last)


def set_recovery_format(network: nn.Module, device: torch.device) -> None:
    """Convert the network's weights in place to the memory format in which pixels are optimised fastest, at fp32.

    Channels last on a CPU with AVX2 but not AVX-512, where an iteration takes 13 % less time than with weights as they
    are built; with AVX-512 it takes 17 % more (``docs/benchmarks.md``).
    """
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        set_memory_format(network, "fp32")


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory, so that memory of earlier trials in this process is not counted.

    Where this is not supported (neither Linux nor CUDA), the peak remains that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # resets VmHWM


def peak_mib(device: torch.device) -> float:
    """Peak memory in MiB since the last reset: of tensors on CUDA, otherwise of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = re.search(rb"^VmHWM:\s*(\d+) kB$", _STATUS.read_bytes(), re.MULTILINE) if _STATUS.exists() else None
    if peak is not None:  # gVisor, in which some clouds run containers, has the file without this line
        return int(peak[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
