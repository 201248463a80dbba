"""No garbage collection while the results of a large grid are read and shown."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch Python's cyclic garbage collector off for a while, as a context manager or decorator.

    The MLflow runs of 10,000 evaluations are a million objects without cycles, through all of which the collector would
    go again and again: that takes longer than reading them.  Objects without cycles are freed as ever.
    """
    switched_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if switched_on:
            gc.enable()
