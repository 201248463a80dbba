"""Recipes without an engine: ``python -m rd3.run RECIPES... --store DIR --out DIR``.

For machines that have neither Ray nor MLflow; ``rd3 import-results DIR`` brings the store into the ledger and MLflow
later.  :mod:`rd3.campaign` is the implementation, :mod:`rd3.campaign.command` its options and exit codes.
"""

from __future__ import annotations

import os


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; ``arguments`` default to the process's own."""
    from rd3.campaign import command
    from rd3.processes import open_standard_streams

    open_standard_streams()
    return command.main(arguments)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
