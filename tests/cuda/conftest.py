"""The device of these tests: the machine's GPU, otherwise a simulated one, or none with ``RD3_SIMULATED_GPU=0``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from simulated_gpu import simulated_gpu


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    if os.environ.get("RD3_SIMULATED_GPU") == "0":
        pytest.skip("no CUDA device here")
    with simulated_gpu():
        yield
