"""What ended a recipe: out of memory in the words of the system and of its libraries."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from rd3.errors import ends_the_process, why


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),  # of a fork, or a file that is mapped
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),
    ],
)
def test_out_of_memory_is_known_in_all_its_words(error):
    try:
        raise error
    except type(error) as raised:
        assert why(raised)[0] == "oom" and ends_the_process(raised)
