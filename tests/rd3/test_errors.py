"""What ended a recipe: out of memory in the words of the system and of its libraries."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal

import pytest
import torch

from rd3.errors import ends_the_process, why
from rd3.store import write_atomically


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


def test_a_full_disk_is_named_with_its_file_and_what_may_be_missing(tmp_path):
    file = tmp_path / "checkpoint"
    status, reason = why(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)))
    assert status == "failed" and reason.startswith(f"No space left for {file}. Fix: free space") and "df -i" in reason


def test_a_file_that_does_not_fit_is_named(tmp_path):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "large"))) as refused:
            write_atomically(tmp_path / "large", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert refused.value.filename == str(tmp_path / "large") and list(tmp_path.iterdir()) == []
