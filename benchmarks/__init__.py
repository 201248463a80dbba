"""How fast RD3 is: each case takes turns with a reference path in one process.  ``python -m benchmarks --list``.

The reference paths are our own, after the structure of the published loops: fp32, NCHW, transforms image by image in a
DataLoader, unmodified teachers.  They are not any authors' code, and their times are not from a paper.

A case is a module with ``run(bench) -> list[Row]``, named in :mod:`benchmarks.__main__`.  Files with a command line of
their own, such as ``planning.py`` and ``s3_transfer.py``, are scripts that need the whole platform.
"""
