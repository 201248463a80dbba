"""A study: results in few files, small enough for a repository.

``results.parquet`` has a row for every entry, and inside it all files of the evaluations.  Of sets up to IPC 10 the
files are beside it, one Parquet file a set in ``sets/``, and the contact sheet as a picture in ``sheets/``; networks
(``teachers/``, ``statistics/``) are there where they were wanted.  The files of everything else are left out: the entry
says what they were.  What comes out of a study is bit for bit what went in.
"""

from rd3.study.opened import RESULTS, Study
from rd3.study.writer import Written, write_study

__all__ = ["RESULTS", "Study", "Written", "write_study"]
