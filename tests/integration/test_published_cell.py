"""A cell of a published table, made again from nothing by the recipes that are committed with its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from rd3.device import bf16_in_hardware, resolve_precision
from rd3.recipe import from_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
CELLS = {
    "hard labels": ("studies", "ded28fa287c2"),  # random images, IPC 1: a set and an evaluation
    "soft labels": ("digits-all", "0138e07ced40"),  # the same images with the labels of a teacher
}
PROCESSOR = "amx_bf16"
"""A feature of the processor that the committed results are from; bits are equal on the same kind alone."""


def committed(study: str) -> dict[str, dict[str, Any]]:
    """The entries of a study by key, as its file has them."""
    rows = pq.read_table(RESULTS / study / "results.parquet", columns=["key", "entry"]).to_pylist()
    return {row["key"]: json.loads(row["entry"]) for row in rows}


def chain(key: str, entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry of a key, after those of everything that its recipe is made from."""
    parents = from_json(json.dumps(entries[key]["recipe"])).parents()
    return [*(one for _kind, parent in parents for one in chain(parent, entries)), entries[key]]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", CELLS)
def test_a_published_cell_is_found_again_by_its_committed_recipes_alone(cell: str, tmp_path: Path) -> None:
    study, start = CELLS[cell]
    entries = committed(study)
    [key] = [key for key in entries if key.startswith(start)]
    wanted = {entry["key"]: entry for entry in chain(key, entries)}
    made = wanted[key]["made"] | wanted[key]["result"]
    cpu = torch.device("cpu")
    if made["torch"] != torch.__version__:
        pytest.skip(f"the result is of torch {made['torch']}, this is {torch.__version__}")
    if made["device"] != "cpu" or made["ran_precision"] != resolve_precision(cpu, "auto"):
        pytest.skip(f"the result is of {made['device']} at {made['ran_precision']}, which this machine does not use")
    if not bf16_in_hardware(cpu) or not torch.cpu.get_capabilities().get(PROCESSOR, False):
        pytest.skip(f"the result is of a processor with {PROCESSOR}, which this machine lacks")

    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for place, entry in enumerate(wanted.values()):
        (recipes / f"{place}.json").write_text(json.dumps(entry["recipe"]))
    places = [f"--{name}={tmp_path / name}" for name in ("store", "out", "home")]
    done = subprocess.run(
        [sys.executable, "-m", "rd3.run", str(recipes), *places],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for one in wanted.values():
        found = json.loads((tmp_path / "store" / "by-key" / one["kind"] / f"{one['key']}.json").read_text())
        figures = [name for name in ("correct", "tested", "final_loss") if name in one["result"]]
        assert [found["result"][name] for name in figures] == [one["result"][name] for name in figures]
        assert found["content"] == one["content"], "pixels of a set, weights of a teacher"
