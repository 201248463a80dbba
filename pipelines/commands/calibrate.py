"""``rd3 calibrate``: measure the speed of this machine for cost estimates in plans."""

from __future__ import annotations

import math
import sys
from typing import Annotated

from typer import Option

from pipelines.commands._show import console
from pipelines.settings import writing_session


def calibrate(
    device: Annotated[
        str | None, Option(help="cpu (one thread), cuda, cuda:1 ... (default: a GPU if available).")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the calibration as JSON.")] = False,
) -> None:
    """Benchmark this machine for about 20 seconds and store the result in the ledger; later plans use it."""
    from rd3.hardware import hardware
    from rd3.planning.calibration import calibrate as measured
    from tracking.ledger import calibrations

    objects = writing_session().ledger.objects
    found = measured(device or hardware().kind)
    name = calibrations.keep(objects, found)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=1) + "\n")
        return
    unit = "one GPU" if found.kind == "cuda" else "one thread"
    console.print(
        f"{found.device}, torch {found.torch}, {unit}: {found.fp32 / 1e9:,.0f} GFLOP/s at fp32, "
        f"{found.bf16 / 1e9:,.0f} at bf16, {found.bytes / 1e9:,.1f} GB/s, "
        f"{1000 * found.step_s:.1f} ms of overhead a step; `precision: auto` is {found.auto}"
    )
    console.print(
        f"{found.runs} timed trainings, which deviate from these rates by a factor of up to "
        f"{math.exp(2 * found.residual):.1f} (two standard deviations); {len(found.networks)} pairs of network and "
        "precision have their own rate"
    )
    console.print(f"stored as {objects.root}/{name}")
