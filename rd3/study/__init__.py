"""A study: results in a few files, small enough for a repository.

``results.parquet`` has a row for every entry, including all files of evaluations but the weights of students.  The
files of sets up to IPC 10 are stored with it, one Parquet file per set in ``sets/``, and contact sheets as images in
``sheets/``; networks and what is measured on them (``teachers/``, ``statistics/``) are optional.  All other files are
left out; the entry records their hashes.  Files read from a study are bitwise equal to the originals.
"""

from rd3.study.opened import RESULTS, Study
from rd3.study.writer import Written, write_study

__all__ = ["RESULTS", "Study", "Written", "write_study"]
