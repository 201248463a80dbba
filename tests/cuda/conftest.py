"""The device of these tests: the machine's GPU, otherwise a simulated one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from simulated_gpu import simulated_gpu


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so where a GPU was expected that torch does not see."""
    if not torch.cuda.is_available():
        terminalreporter.write_line("tests marked cuda ran on a simulated GPU")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    with simulated_gpu():
        yield
