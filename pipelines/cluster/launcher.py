"""Sends a grid to a cluster that Ray's launcher has started (``ray up``): by ``ray submit``, with the grid as text.

The launcher copies the script and nothing else.  RD3 itself is installed on the nodes, as the cluster file says.
"""

from __future__ import annotations

import base64
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from pipelines.cluster.submit import PROBE, Submission, check_versions
from rd3.errors import DataMissing, RD3Error


def _ray(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("ray")), *words]


def probe(cluster_file: Path) -> None:
    """Ask the head for its versions; raises :class:`RD3Error` where they differ from ours, or nobody answers."""
    if not cluster_file.is_file():
        raise DataMissing(f"There is no cluster file {cluster_file}.", "infra/ray/ has some to start from")
    asked = subprocess.run(_ray("exec", str(cluster_file), PROBE), capture_output=True, text=True, check=False)
    if asked.returncode and "rd3-probe" not in asked.stdout:
        said = [line for line in (asked.stdout + asked.stderr).splitlines() if line.strip()]
        raise RD3Error(
            f"The head of {cluster_file} does not answer: {(said or ['nothing was said'])[-1].strip()[:200]}",
            f"start the cluster: ray up {cluster_file}",
        )
    check_versions(asked.stdout, f"The cluster of {cluster_file}")


def words(submitted: Submission) -> list[str]:
    """The command line of :mod:`pipelines.run_grid`, a grid file of the user's own as text in it."""
    if submitted.file is None:
        return submitted.words
    return [*submitted.words, "--text", base64.urlsafe_b64encode(submitted.file.read_bytes()).decode()]


def submit(cluster_file: Path, submitted: Submission) -> int:
    """Run the grid on the head and show what it says; 0, or 1 for whatever went wrong there, as ``ray submit`` does."""
    script = [str(files("pipelines").joinpath("run_grid.py")), "--", *map(shlex.quote, words(submitted))]
    return subprocess.run(_ray("submit", str(cluster_file), *script), check=False).returncode
