"""Named random streams derived from one seed.

``generator(seed, "augment", 3)`` depends only on its arguments: streams with different names are independent, and a
stream does not depend on earlier draws.  Names contain no slash.  Code in ``rd3`` touches global generators (torch's,
NumPy's, Python's) only inside the context managers of this module, which restore them.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

from rd3.lazy import torch  # imported when first used

BIGGEST_SEED = 2**63 - 1
"""The largest seed of grid files and the command line: more does not fit into the tables of results."""


def derive(seed: int, *names: object) -> int:
    """Derive a 63-bit seed from a seed and the name of a stream."""
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for one stream; drawing on the CPU gives every device the same numbers."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextlib.contextmanager
def scoped(stream: torch.Generator) -> Iterator[None]:
    """Inside ``with``, torch's global CPU generator (weight initialisation) gives the numbers that ``stream`` would.

    ``stream`` itself does not advance; the global state is restored afterwards.
    """
    before = torch.get_rng_state()
    torch.set_rng_state(stream.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextlib.contextmanager
def scoped_globals(seed: int) -> Iterator[None]:
    """Inside ``with``, Python's and NumPy's global generators start from a seed; they are restored afterwards."""
    import numpy as np

    before, arrays = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(arrays)


class ForkedRNG:
    """Inside ``with``, torch's global generators draw from a named stream, which each new ``with`` continues.

    For layers that use the global generators (dropout, stochastic depth), on the CPU and on ``device``.  Their previous
    states are restored on exit.
    """

    def __init__(self, device: torch.device, seed: int, *names: object):
        self._device = device if device.type == "cuda" else None
        self._inside = [generator(seed, *names).get_state()]
        if self._device is not None:
            self._inside.append(torch.Generator(device).manual_seed(derive(seed, *names)).get_state())

    def _swap(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        before = [torch.get_rng_state()]
        torch.set_rng_state(states[0])
        if self._device is not None:
            before.append(torch.cuda.get_rng_state(self._device))
            torch.cuda.set_rng_state(states[1], self._device)
        return before

    def __enter__(self) -> None:
        self._outside = self._swap(self._inside)

    def __exit__(self, *_error: object) -> None:
        self._inside = self._swap(self._outside)
