"""The plugin contract: a method is one class in one file.

Copy ``random.py``, rename the class, done.  A method in another package is found by the entry-point group
``rd3.methods``.
"""

from rd3.methods._base import (
    METHODS,
    NOISE,
    Context,
    Method,
    Needs,
    Recording,
    Settings,
    Support,
    mistakes_in_setting,
    register_method,
    resolve_settings,
)
from rd3.models import Cost
from rd3.synthetic_set.block import Block

__all__ = [
    "METHODS",
    "NOISE",
    "Block",
    "Context",
    "Cost",
    "Method",
    "Needs",
    "Recording",
    "Settings",
    "Support",
    "mistakes_in_setting",
    "register_method",
    "resolve_settings",
]
