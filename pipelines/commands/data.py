"""``rd3 data``: what is there, what is wrong, how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands._show import console, progress_bar, show_table
from pipelines.settings import session

app = typer.Typer(help="Datasets: doctor, fetch, add, push, pull.", no_args_is_help=True)


@app.command("doctor")
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say which datasets are there, which are damaged, and what to do about it."""
    from rd3 import datasets

    findings = datasets.doctor(session().roots)
    show_table([describe(finding, whole=as_json) for finding in findings], as_json=as_json)
    for finding in findings if not as_json else ():
        if finding.state != "ok":
            said = f"{finding.dataset}: {finding.message} Fix: {finding.fix}"
            console.print(said, markup=False, soft_wrap=True)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(3)


def describe(finding: Any, *, whole: bool = True) -> dict[str, Any]:
    """A finding as a row: everything for programs, what matters for people."""
    if whole:
        return {"name": finding.dataset, **asdict(finding)}
    found = finding.state == "ok"
    return {
        "dataset": finding.dataset,
        "state": finding.state,
        "train": finding.train_count if found else None,
        "test": finding.test_count if found else None,
        "folder": finding.folder,
    }


@app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="A dataset that torchvision can download.")]) -> None:
    """Download a dataset into RD3's own folder."""
    from rd3 import datasets

    with progress_bar(f"fetch {name}") as progress:
        copy = datasets.fetch(name, session().roots)
        progress(1.0, "")
    console.print(f"{name} is in {copy.folder}")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="A name that no other dataset has.")],
    folder: Annotated[Path, typer.Option("--folder", help="Class folders, or train/ and test/ with class folders.")],
    resolution: Annotated[int, typer.Option(help="Side at which networks see the images: 32, 64 or 224.")] = 224,
) -> None:
    """Register an image folder of your own as a dataset."""
    from rd3 import datasets

    roots = session().roots
    info = datasets.add_folder(name, folder, roots, resolution=resolution)  # type: ignore[arg-type]  # checked inside
    sides = datasets.shorter_sides(name, roots)
    lines = [
        f"{name}: {info.num_classes} classes, {info.train_count} training and {info.test_count} test images, "
        f"class list {info.classes[:12]}",
        f"networks see {resolution} pixels a side; the images have {sides} (shorter side)",
    ]
    if sides.nearest != resolution:
        lines.append(f"{sides.nearest} is nearer: rd3 data add {name} --folder {folder} --resolution {sides.nearest}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@app.command("push")
def push(names: Annotated[list[str], typer.Argument(help="Datasets of this machine.", metavar="NAME...")]) -> None:
    """Send datasets to the tracking server, from where the nodes of a cluster pull them; once a fingerprint."""
    from pipelines.transfer.datasets import push

    here = session()
    for name in names:
        with progress_bar(f"push {name}") as progress:
            parcel, new = push(name, here, progress)
            progress(1.0, "")
        size = f"{parcel.files} files, {parcel.bytes / 2**20:.1f} MiB, fingerprint {parcel.fingerprint[:12]}"
        console.print(f"{name}: {size}, {'pushed' if new else 'was there'}", markup=False, soft_wrap=True)


@app.command("pull")
def pull(names: Annotated[list[str], typer.Argument(help="Datasets that were pushed.", metavar="NAME...")]) -> None:
    """Fetch datasets from the tracking server into RD3's own folder, where this machine lacks them."""
    from pipelines.transfer.datasets import absent, pull
    from tracking.runs.runs import Tracker

    here = session()
    if any(absent(name, here.roots) for name in names):
        Tracker(here).check()
    for name in names:
        with progress_bar(f"pull {name}") as progress:
            folder = pull(name, here, progress=progress)
            progress(1.0, "")
        console.print(f"{name}: {folder or 'was here'}", markup=False, soft_wrap=True)
