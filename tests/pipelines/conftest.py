"""A home of the test's own, and the command line over it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RD3's home, which does not exist yet; nothing that the user has set leaks in."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RD3_HOME", str(folder))
    for name in ("RD3_DATA", "RD3_ARTIFACTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database without runs, to be copied: MLflow takes seconds to make one."""
    from tracking.place import Place
    from tracking.runs.runs import Tracker

    home = tmp_path_factory.mktemp("empty")
    database = home / "mlflow.db"
    Tracker(Place(f"sqlite:///{database}", str(home / "artifacts"), home)).client.search_experiments()
    return database


@pytest.fixture
def rd3(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process; gives exit code, standard output and standard error."""
    from pipelines import cli

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rd3", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run
