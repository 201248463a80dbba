"""Run cases, one CSV each.

    python -m benchmarks [CASE ...] [--quick] [--device cpu|cuda] [--rounds N] [--network NAME] [--out DIR] [--list]

Without a name every case runs that is meant for the device.  ``--quick`` takes few rounds and leaves the longest out:
the whole suite in about 100 seconds on a GPU.  On a CPU, OMP_NUM_THREADS sets the number of threads (default 1); where
it has bf16 in hardware, ``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`` disables it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rd3
from benchmarks.bench import Bench, Row, Skipped
from rd3.csv_file import csv_text
from rd3.device import bf16_in_hardware, configure_torch, usable_device
from rd3.errors import RD3Error
from rd3.hardware import processor
from rd3.store import now

ROUNDS, QUICK_ROUNDS = 5, 3


class Case(NamedTuple):
    """One module of this package, with ``run(bench) -> list[Row]``, which is imported when it runs."""

    summary: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    in_quick: bool = True
    """Whether ``--quick`` runs it unless it is named."""

    def runs(self, device: str, quick: bool) -> bool:
        """Whether it runs on this type of device if no case is named."""
        return device in self.devices and (self.in_quick or not quick)


CASES = {
    "post_evaluation": Case("a training step with a teacher, beside the published loop's structure"),
    "recovery": Case("an iteration of SRe2L, optimisation by optimisation, and several blocks at once"),
    "patch_scoring": Case("a crop scored by RDED"),
    "shared_views": Case("students that share views and teachers' logits, beside each alone"),
    "cached_logits": Case("students that read cached teacher logits, beside students with a teacher"),
    "layout": Case("a training step with weights channels last, beside weights as they are built"),
    "compiled": Case("a training step compiled by torch, beside the same step as it is", in_quick=False),
    "sampling": Case("an image from a diffusion model, in batches beside one at a time"),
    "cell": Case("a CIFAR-10 IPC 10 cell by parts: set, training, test", devices=("cpu",), in_quick=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        print("\n".join(f"{name:<16} {case.summary}; {', '.join(case.devices)}" for name, case in CASES.items()))
        return 0
    configure_torch(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    bench = Bench(chosen.device, rounds, chosen.quick, chosen.network, chosen.out)
    names = chosen.cases or [name for name, case in CASES.items() if case.runs(bench.device.type, bench.quick)]
    machine = facts(bench.device, bench.peaks)
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value != ""), flush=True)
    return max([_run(name, bench) for name in names], default=0)


def _parser() -> argparse.ArgumentParser:
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", type=_case, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="few rounds, and not the longest cases")
    parser.add_argument("--device", type=_device, default=here, help=f"default here: {here}")
    parser.add_argument("--rounds", type=_positive, help=f"default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--network", default="resnet18", help="teacher and student; default resnet18")
    parser.add_argument("--out", type=Path, default=Path(".bench"), help="folder of the CSV files; default .bench")
    parser.add_argument("--list", action="store_true", help="list the cases")
    return parser


def _device(name: str) -> torch.device:
    try:
        return usable_device(name)
    except RD3Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"there is no case {name!r}; there are {', '.join(CASES)}")
    return name


def _run(name: str, bench: Bench) -> int:
    """Measure a case and write its CSV; returns 1 if it failed, which is printed and does not stop the others."""
    start = time.perf_counter()
    try:
        rows = importlib.import_module(f"benchmarks.{name}").run(bench)
    except Skipped as reason:
        print(f"{name}: skipped, {reason}", flush=True)
        return 0
    except Exception as error:  # the other cases still run
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return 1
    write_csv(bench.out / f"{name}.csv", rows, facts(bench.device, bench.peaks))
    print(f"{name}, {time.perf_counter() - start:.0f} s\n{table(rows)}", flush=True)
    return 0


def facts(device: torch.device, peaks: dict[str, float]) -> dict[str, Any]:
    """What every row of a CSV says of the machine; ``load_average`` is the current one, ``peaks``: GFLOP/s by dtype."""
    return {
        "processor": processor().name,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "device": str(device),
        "bf16_in_hardware": bf16_in_hardware(device),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "aten_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32_products": torch.get_float32_matmul_precision(),
        "tf32_convolutions_of_reference": torch.backends.cudnn.allow_tf32,
        **{f"peak_{dtype}_gflop_per_s": round(rate, 1) for dtype, rate in peaks.items()},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "rd3": rd3.__version__,
        "python": platform.python_version(),
        "date": now(),
    }


def write_csv(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Every row, followed by the facts of the machine (column to value)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*(field.name for field in fields(Row)), *facts]
    cells = [[*asdict(row).values(), *facts.values()] for row in rows]
    path.write_text(csv_text([columns, *cells]), encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one line each."""
    return "\n".join(_line(row) for row in rows)


def _line(row: Row) -> str:
    each = f"{1e3 * row.ours_s:10.2f} ms, reference {1e3 * row.reference_s:10.2f} ms per {row.unit}"
    rates = [f"{row.images_per_s:.0f} images/s"] if row.images_per_s else []
    rates += [f"{row.gflop_per_s:.0f} GFLOP/s"] if row.gflop_per_s else []
    rates += [f"{100 * row.share_of_peak:.1f} % of peak"] if row.share_of_peak else []
    words = [f"x {row.ratio:.2f}", row.verdict, *rates, row.dtype, row.note]
    return f"  {row.variant:<46} {each}  " + "; ".join(word for word in words if word)


if __name__ == "__main__":
    raise SystemExit(main())
