"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a CUDA device says so where there is none."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real datasets; set ``RD3_DATA`` to run the tests that read it.  CI may not skip them."""
    root = os.environ.get("RD3_DATA")
    if not root:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("RD3_DATA is not set: no real datasets to read")
    return Path(root)
