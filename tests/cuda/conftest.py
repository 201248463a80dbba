"""The device of these tests: the machine's GPU, otherwise a simulated one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simulated_gpu import simulated_gpu


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    with simulated_gpu():
        yield
