"""Submit a grid to a cluster started by Ray's launcher (``ray up``), using ``ray submit``, with the grid as text.

The launcher copies only the script.  RD3 itself must be installed on the nodes, as set in the cluster file.
"""

from __future__ import annotations

import base64
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from pipelines.cluster.ray import last_line
from pipelines.cluster.submit import PROBE, Submission, check_versions
from rd3.errors import DataMissing, RD3Error


def _ray(*words: str) -> list[str]:
    # The command `ray`, which may not be in PATH; -P: no module of the working directory takes the place of another.
    return [sys.executable, "-P", "-m", "ray.scripts.scripts", *words]


def probe(cluster_file: Path) -> None:
    """Check the versions on the head; raises :class:`RD3Error` if they differ from ours or it does not respond."""
    if not cluster_file.is_file():
        raise DataMissing(f"There is no cluster file {cluster_file}.", "see infra/ray/ for examples")
    asked = subprocess.run(_ray("exec", str(cluster_file), PROBE), capture_output=True, text=True, check=False)
    if asked.returncode and "rd3-probe" not in asked.stdout:
        said = last_line(asked.stdout + asked.stderr, "no output")
        raise RD3Error(
            f"The head of {cluster_file} does not respond: {said[:200]}.",
            f"start the cluster: ray up {cluster_file}",
        )
    check_versions(asked.stdout, f"The cluster of {cluster_file}")


def arguments(submitted: Submission) -> list[str]:
    """The arguments of :mod:`pipelines.run_grid`, including the text of a user's own grid file."""
    if submitted.file is None:
        return submitted.arguments
    text, file = base64.urlsafe_b64encode(submitted.file.read_bytes()).decode(), submitted.file.name
    return [*submitted.arguments, "--text", text, *(["--file", file] if file != submitted.grid else [])]


def submit(cluster_file: Path, submitted: Submission) -> int:
    """Run the grid on the head and show its output; returns 0, or 1 for any failure, as ``ray submit`` does."""
    script = [str(files("pipelines").joinpath("run_grid.py")), "--", *map(shlex.quote, arguments(submitted))]
    return subprocess.run(_ray("submit", str(cluster_file), *script), check=False).returncode
