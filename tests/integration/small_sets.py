"""Sets of a few files that no method generated, in a store with MLflow runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from rd3.recipe import Data, SetRecipe
from rd3.store import Entry, sha256_files
from tracking.store import TrackedStore


def a_set(seed: int) -> SetRecipe:
    data = Data(name="digits", fingerprint="f" * 64)
    own = {"method": "random", "version": 1, "settings": {}, "ipc": 1, "set_seed": seed}
    return SetRecipe(**own, data=data, classes="c" * 64, resolution=32)


def put_set(store: TrackedStore, recipe: SetRecipe, out: Path) -> None:
    (out / "blocks").mkdir(parents=True)
    (out / "blocks" / "00000.bin").write_bytes(bytes([recipe.set_seed]) * 1000)
    (out / "manifest.json").write_text("{}")
    plain = recipe.model_dump(mode="json")
    store.put(Entry(kind="set", key=recipe.key, recipe=plain, result={"count": 10}, files=sha256_files(out)), out)
    shutil.rmtree(out)
