"""torch and pyarrow, loaded at their first use: they take long, and listing, planning and checking do without them.

``from rd3.lazy import torch`` takes the place of ``import torch`` in every function of a module that is itself imported
without torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["F", "nn", "pa", "pq", "torch"]

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from torch import nn
    from torch.nn import functional as F
else:

    class _Lazy(ModuleType):
        """Looks its attributes up in the module of its name."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch, nn, F = _Lazy("torch"), _Lazy("torch.nn"), _Lazy("torch.nn.functional")
    pa, pq = _Lazy("pyarrow"), _Lazy("pyarrow.parquet")
