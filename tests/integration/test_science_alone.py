"""`rd3/` in a real environment that has neither Ray, MLflow, Optuna nor boto3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCIENCE = "torch torchvision timm numpy scipy scikit-learn pydantic pyyaml safetensors pyarrow pillow"
ENGINES = ("ray", "mlflow", "optuna", "boto3")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Python of a fresh environment with the science's requirements and the package `rd3`, nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*install, *SCIENCE.split()], check=True)
    (folder / "src").mkdir()
    (folder / "src" / "rd3").symlink_to(ROOT / "rd3")
    return python


@pytest.mark.integration
def test_the_science_runs_without_the_platform(alone, tmp_path):
    source = alone.parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([alone, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)

    for engine in ENGINES:
        assert "ModuleNotFoundError" in python("-c", f"import {engine}").stderr
    script = tmp_path / "make_recipe.py"
    script.write_text(
        "from pathlib import Path\n"
        "from rd3.datasets import Roots, open_dataset\n"
        "from rd3.recipe import Data, SetRecipe, to_json\n"
        "dataset = open_dataset('digits', Roots(None, Path('home')))\n"
        "recipe = SetRecipe(method='random', version=1, settings={}, ipc=1, set_seed=0,\n"
        "    data=Data(name='digits', fingerprint=dataset.fingerprint),\n"
        "    classes=dataset.info.classes, resolution=dataset.info.resolution)\n"
        "Path('set.json').write_text(to_json(recipe))\n"
        "import rd3.methods, rd3.models, rd3.losses, rd3.evaluation.posteval, rd3.teacher, rd3.testing\n"
        "import rd3.planning.forecast\n"
        "print(sorted(rd3.methods.METHODS.names()))\n"
    )
    said = python(str(script))
    assert "'random', 'rded', 'sre2l'" in said.stdout, said.stderr
    made = python("-m", "rd3.run", "set.json", "--store", "store", "--out", "out", "--home", "home")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "store" / "by-key" / "set").iterdir())) == 1
