"""RD3: generate, evaluate and compare distilled datasets under one fixed protocol.

The names below are loaded on first use, so that ``import rd3`` is fast.  ``docs/explanation/glossary.md`` explains the
words that have a particular meaning in RD3.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "SyntheticSet": "rd3.synthetic_set",
    "evaluate": "rd3.evaluation.posteval",
    "resolve_protocol": "rd3.protocol",
    "open_dataset": "rd3.datasets",
    "Roots": "rd3.datasets",
    "Method": "rd3.methods",
    "Block": "rd3.methods",
    "Support": "rd3.methods",
    "register_method": "rd3.methods",
    "RD3Error": "rd3.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rd3' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
