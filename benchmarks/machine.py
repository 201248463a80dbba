"""The machine, in columns that every row of a CSV has."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

import rd3
from rd3.device import bf16_in_hardware
from rd3.hardware import processor
from rd3.store import now


def facts(device: torch.device, peaks: dict[str, float]) -> dict[str, Any]:
    """Values by column; ``load_average`` is the current one, ``peaks`` are GFLOP/s by data type."""
    return {
        "processor": processor().name,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "device": str(device),
        "bf16_in_hardware": bf16_in_hardware(device),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "aten_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32_products": torch.get_float32_matmul_precision(),
        "tf32_convolutions_of_reference": torch.backends.cudnn.allow_tf32,
        **{f"peak_{dtype}_gflop_per_s": round(rate, 1) for dtype, rate in peaks.items()},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "rd3": rd3.__version__,
        "python": platform.python_version(),
        "date": now(),
    }
