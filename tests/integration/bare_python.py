"""A Python that has what a bare GPU machine has, and nothing else of this environment."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

THERE = "torch torchvision timm numpy pandas pyarrow safetensors scipy scikit-learn pytest typer rich jinja2"
WITHOUT = "pydantic pydantic-core annotated-types typing-inspection pyyaml ray mlflow optuna boto3 diffusers"


def make_bare_python(folder: Path) -> Path:
    """The interpreter of an environment in ``folder``, made of links to the distributions of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target, source = folder / "lib" / version / "site-packages", Path(sysconfig.get_path("purelib"))
    for found in _with_requirements(THERE.split()):
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (target / top).exists() and (source / top).exists():
                (target / top).symlink_to(source / top)
    return folder / "bin" / "python"


def _with_requirements(names: list[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found or name in WITHOUT.split():
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # an option of a distribution that is not installed here either
            continue
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())
