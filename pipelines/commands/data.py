"""``rd3 data``: check, download, register, push and pull datasets."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option, Typer

from pipelines.commands._show import JsonOption, console, progress_bar, show_note, show_table
from pipelines.settings import session, writing_session

if TYPE_CHECKING:
    from rd3.datasets import Finding

app = Typer(name="data", help="Datasets: doctor, fetch, add, push, pull.", no_args_is_help=True)


@app.command("doctor")
def doctor(as_json: JsonOption = False) -> None:
    """List available, missing and damaged datasets, with a fix for each problem; images are not decoded."""
    from rd3 import datasets

    findings = datasets.doctor(session().roots)
    if as_json:
        show_table([{"name": finding.dataset, **asdict(finding)} for finding in findings], as_json=True)
    else:
        show_table([_row(finding) for finding in findings])
        for finding in findings:
            if finding.state != "ok":
                console.print(f"{finding.dataset}: {finding.message} Fix: {finding.fix}")
        console.print("ok: files, labels, class lists and counts; images are decoded when a dataset is used")
    if any(finding.state == "wrong" for finding in findings):
        raise Exit(3)


def _row(finding: Finding) -> dict[str, Any]:
    train, test = (finding.train_count, finding.test_count) if finding.state == "ok" else (None, None)
    shown = {"dataset": finding.dataset, "state": finding.state}
    return shown | {"train": train, "test": test, "folder": finding.folder}


@app.command("fetch")
def fetch(name: Annotated[str, Argument(help="A dataset that torchvision can download.")]) -> None:
    """Download a dataset into RD3's own folder."""
    from rd3 import datasets

    with progress_bar(f"fetch {name}") as progress:
        copy = datasets.fetch(name, session().roots)
        progress(1.0, "")
    console.print(f"{name} is in {copy.folder}" if copy.folder else f"{name} comes with RD3's packages")


@app.command("add")
def add(
    name: Annotated[
        str, Argument(help="Name of the dataset, other than the built-in ones; replaces one that you added.")
    ],
    folder: Annotated[
        Path,
        Option(
            "--folder",
            help="Folder with one subfolder per class, with train/ and test/ that have one each, or with Parquet files "
            "train-*.parquet and test-*.parquet.",
        ),
    ],
    resolution: Annotated[int, Option(help="Input resolution of the networks in pixels: 32, 64 or 224.")] = 224,
) -> None:
    """Register your own image folder as a dataset."""
    from rd3 import datasets

    roots = session().roots
    info = datasets.add_folder(name, folder, roots, resolution, say=show_note)  # type: ignore[arg-type]  # checked inside
    sides = datasets.shorter_sides(name, roots)
    lines = [
        f"{name}: {info.num_classes} classes, {info.train_count} training and {info.test_count} test images, "
        f"class list {info.classes[:12]}",
        f"input resolution {resolution} pixels; the shorter side of the images is {sides}",
    ]
    if sides.nearest != resolution:
        again = f"rd3 data add {name} --folder {shlex.quote(str(folder))} --resolution {sides.nearest}"
        lines.append(f"{sides.nearest} is closer: {again}")
    console.print(*lines, sep="\n")


@app.command("push")
def push(names: Annotated[list[str], Argument(help="Datasets on this machine.", metavar="NAME...")]) -> None:
    """Upload datasets to the tracking server, from which cluster nodes pull them; each version is uploaded once."""
    from pipelines.transfer.datasets import push

    here = writing_session()
    for name in names:
        with progress_bar(f"push {name}") as progress:
            bundle, new = push(name, here, progress)
            progress(1.0, "")
        size = f"{bundle.files} files, {bundle.bytes / 2**20:.1f} MiB, fingerprint {bundle.fingerprint[:12]}"
        console.print(f"{name}: {size}, {'pushed' if new else 'already there'}")


@app.command("pull")
def pull(
    names: Annotated[list[str], Argument(help="Datasets that have been pushed.", metavar="NAME...")],
) -> None:
    """Download datasets missing on this machine from the tracking server into RD3's own folder."""
    from pipelines.transfer.datasets import absent, pull
    from tracking.runs.runs import Tracker

    here = session()
    if any(absent(name, here.roots) for name in names):
        Tracker(here).check()
    for name in names:
        with progress_bar(f"pull {name}") as progress:
            folder = pull(name, here, progress=progress)
            progress(1.0, "")
        console.print(f"{name}: {folder or 'already here'}")
