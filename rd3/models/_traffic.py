"""Memory traffic of a network's operations, in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Inside ``with``, sums the bytes of the inputs and outputs of operations; views count as zero."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # not annotated in torch
        self.bytes = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor))
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output
