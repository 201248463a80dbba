"""No package loads what could run code: a reader of files from outside is safe by its own arguments, in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN_MODULES = {"joblib", "dill", "cloudpickle", "shelve", "marshal"}
HARMLESS = {"joblib.cpu_count"}
FORBIDDEN_CALLS = {"load", "loads", "Unpickler"}
"""Of :mod:`pickle`, whose errors may be named."""
WEIGHTS = {"load", "load_url", "load_state_dict_from_url", "get_state_dict", "torch_load"}
"""Of torch, torchvision and timm: need ``weights_only=True``."""


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a module that may execute what it reads."""
    tree = ast.parse(source)
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in (above + one.name for one in node.names):
                if name.split(".")[0] in FORBIDDEN_MODULES and name not in HARMLESS:
                    yield node.lineno, name
        if isinstance(node, ast.Call):
            called = _name(node.func, names)
            if _bad_call(called, {word.arg: word.value for word in node.keywords}, len(node.args)):
                yield node.lineno, called


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name to full name."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname or one.name.split(".")[0]: one.name if one.asname else one.name.split(".")[0]
                      for one in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def _name(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _bad_call(called: str, words: dict[str | None, ast.expr], positional: int) -> bool:
    package, last = called.split(".")[0], called.rpartition(".")[2]
    true = {name for name, value in words.items() if isinstance(value, ast.Constant) and value.value is True}
    if package == "pickle":
        return last in FORBIDDEN_CALLS
    if package == "yaml":
        return last in {"unsafe_load", "full_load", "unsafe_load_all", "full_load_all", "load", "load_all"}
    if last in {"read_pickle"} or called in {"eval", "exec"}:
        return True
    if (package in {"torch", "timm", "torchvision"} and last in WEIGHTS) or last == "get_state_dict":
        return "weights_only" not in true
    value = words.get("allow_pickle")
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import torch as t\nt.load(path)",
        "from torch import load as fetch\nfetch(path)",
        "from torch.hub import load_state_dict_from_url\nload_state_dict_from_url(url)",
        "weights.get_state_dict(progress=False)",
        "import pickle\npickle.load(stream)",
        "from pickle import loads\nloads(data)",
        "import pickle\npickle.Unpickler(stream)",
        "import joblib",
        "from joblib import cpu_count, load",
        "from dill import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import pandas as pd\npd.read_pickle(path)",
        "eval(text)",
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert list(unsafe(line))


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "import pickle\ntry: ...\nexcept pickle.UnpicklingError: ...",
        "import yaml\nyaml.safe_load(text)",
        "import numpy as np\nnp.load(path)",
        "import json\njson.load(stream)",
        "model.eval()",
    ],
)
def test_the_scan_leaves_alone(line: str) -> None:
    assert not list(unsafe(line))


def test_nothing_here_loads_what_could_run_code() -> None:
    modules = [path for package in ("rd3", "tracking", "pipelines", "infra") for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 100
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in modules for line, what in unsafe(path.read_text())]
    assert found == []
