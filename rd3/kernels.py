"""Choices that a device's libraries would make by themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager


def repeatable_kernels() -> AbstractContextManager[None]:
    """cuDNN takes deterministic kernels meanwhile, and does not round fp32 convolutions to TF32 as it would by default.

    For the whole process; what was set before is put back.
    """
    import torch

    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
