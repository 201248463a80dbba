"""What a sweep has left in its home: who works on it now, and its studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna


def training(home: Path) -> list[int]:
    """Processes that train a student of a trial at this moment; a trial's scratch folder says whose it is."""
    names = [path.name for path in (home / "work" / "sweep").glob("*/*")]
    return [process for process in (int(name.split("-")[1]) for name in names) if Path(f"/proc/{process}").exists()]


def trials(home: Path) -> list[Any]:
    """Every trial in the journal of the only sweep there, in order."""
    journals = list((home / "sweeps").glob("*.journal"))
    if not journals:
        return []
    backend = optuna.storages.journal.JournalFileBackend(str(journals[0]))
    storage = optuna.storages.JournalStorage(backend)
    return [trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]
