"""Registers every row of ``networks.yaml``; an architecture's module is imported when it is built."""

from __future__ import annotations

import importlib
from importlib.resources import files
from typing import Any

import yaml

from rd3.lazy import nn
from rd3.models._base import register_network


def _register(name: str, summary: str, forms: dict[int, dict[str, Any]]) -> None:
    """Register a row; ``forms`` maps a resolution to ``build`` (``module.function``), ``options`` and ``note``."""

    def build(num_classes: int, resolution: int) -> nn.Module:
        form = forms[resolution]
        module, function = form["build"].split(".")
        builder = getattr(importlib.import_module(f"rd3.models.architectures.{module}"), function)
        network: nn.Module = builder(num_classes, resolution, **form.get("options", {}))
        return network

    register_network(name, summary=summary, resolutions={side: form["note"] for side, form in forms.items()})(build)


for _name, _row in yaml.safe_load(files("rd3.models").joinpath("networks.yaml").read_text(encoding="utf-8")).items():
    _register(_name, _row["summary"], _row["at"])
