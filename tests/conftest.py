"""What all tests share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing answers, held so that no other process takes it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real datasets; set ``RD3_DATA`` to run the tests that read it.  CI may not skip them."""
    root = os.environ.get("RD3_DATA")
    if not root:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("RD3_DATA is not set: no real datasets to read")
    return Path(root)
