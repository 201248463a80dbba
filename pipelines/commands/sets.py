"""``rd3 set``: list, show, import, export and verify synthetic sets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from pipelines.commands._show import JsonOption, console, show_entries, show_note
from pipelines.settings import session, writing_session

app = Typer(name="set", help="Synthetic sets: list, show, import, export, verify.", no_args_is_help=True)

KeyArgument = Annotated[str, Argument(help="Key or key prefix of the set.")]


@app.command("list")
def list_sets(as_json: JsonOption = False) -> None:
    """List the synthetic sets in the ledger."""
    show_entries(
        session(),
        "set",
        lambda entry: {
            "method": entry.recipe["method"],
            "dataset": entry.recipe["data"]["name"],
            "ipc": entry.recipe["ipc"],
            "source": entry.made.get("source", ""),
            # Of an imported set, whose recipe alone names the content.
            "soft_labels": entry.recipe["settings"].get("soft_label_kind", "") if entry.recipe.get("content") else "",
            "generation_process_s": entry.result.get("generation_process_s"),
            "content": (entry.content or "")[:12],
        },
        as_json,
    )


@app.command("show")
def show(key: KeyArgument) -> None:
    """Print the ledger entry of a set."""
    console.print_json(session().ledger.named("set", key).model_dump_json())


@app.command("verify")
def verify(key: KeyArgument) -> None:
    """Verify all files, the content digest and the class list of a set."""
    from pipelines.workspace import Workspace

    opened = Workspace().open_set(key)
    soft = "" if opened.soft_labels is None else f" with soft labels ({opened.soft_labels.kind})"
    console.print(f"intact: {len(opened.labels)} images{soft}, content {opened.manifest.content[:12]}")


@app.command("export")
def export(
    key: KeyArgument,
    png: Annotated[Path | None, Option(help="Write PNG files to this folder, one subfolder per class.")] = None,
    parquet: Annotated[Path | None, Option(help="Write a Parquet file that datasets.load_dataset can read.")] = None,
) -> None:
    """Export a set to PNG or Parquet, with the soft labels that it comes with."""
    from pipelines.workspace import Workspace
    from rd3.errors import BadValue
    from rd3.synthetic_set import export_parquet, export_png

    if png is None and parquet is None:
        raise BadValue("Nothing to write.", "give --png FOLDER or --parquet FILE")
    opened = Workspace().open_set(key)
    for target, write in ((png, export_png), (parquet, export_parquet)):
        if target is not None:
            write(opened, target)
            console.print(f"wrote {target}")


@app.command("import")
def import_set(
    source: Annotated[
        Path,
        Argument(
            help="A folder with one subfolder of images per class, or a .safetensors, .pt, .npz or .parquet file of "
            "images, labels, and soft_labels if the set has some."
        ),
    ],
    dataset: Annotated[str, Option(help="Dataset that the set distills.")],
    normalised: Annotated[
        str | None,
        Option(
            metavar="CONSTANTS",
            help="Constants that the pixels were normalised with, to undo them: a name (dataset, imagenet, half for "
            "[-1, 1] ...) or MEAN/STD such as 0.4914,0.4822,0.4465/0.2023,0.1994,0.2010.",
        ),
    ] = None,
    clip: Annotated[bool, Option("--clip", help="Clip pixels that are outside [0, 1] after that.")] = False,
    labels: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="File with the labels, where SOURCE holds the images alone (images_best.pt and labels_best.pt).",
        ),
    ] = None,
    number: Annotated[
        int | None,
        Option(help="Which set, from 0, of a file with several (res_*.pt of dataset condensation)."),
    ] = None,
    soft_label_kind: Annotated[
        str | None,
        Option(
            metavar="KIND",
            help="What the soft labels in the file are, logits or probabilities, where neither the file nor the values "
            "show it.",
        ),
    ] = None,
) -> None:
    """Import an external synthetic set into the ledger; says which pixel range, class order and soft labels it has."""
    from rd3.datasets import open_dataset
    from rd3.errors import BadValue
    from rd3.store import Entry
    from rd3.synthetic_set import import_folder, import_tensors
    from tracking.upkeep.health import check_place

    here = writing_session()
    data = open_dataset(dataset, here.roots)
    check_place(here)
    if source.is_dir() and (normalised is not None or clip):
        raise BadValue("Image files hold plain 8-bit pixels.", "leave out --normalised and --clip")
    if source.is_dir() and soft_label_kind is not None:
        raise BadValue("The file of soft labels beside image files states their kind.", "leave out --soft-label-kind")
    if source.is_dir() and (labels is not None or number is not None):
        raise BadValue("Class folders say the labels of one set.", "leave out --labels and --number")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "set"
        if source.is_dir():
            recipe = import_folder(source, data, folder, say=show_note)
        else:
            recipe = import_tensors(
                source if labels is None else (source, labels),
                data,
                folder,
                normalised=normalised,
                clip=clip,
                soft_label_kind=soft_label_kind,
                number=number,
                say=show_note,
            )
        named = [source.resolve().name]
        named += [] if labels is None else [labels.name]
        named += [] if number is None else [f"number {number}"]
        result = {"count": recipe.ipc * data.info.num_classes}
        entry = Entry.of(recipe, folder, result, recipe.content, source=", ".join(named))
        here.store.put(entry, folder)
    own = "--student NETWORK --field soft_labels=own, or " if recipe.soft_label_kind else ""
    console.print(f"set {recipe.key[:12]}: IPC {recipe.ipc}. Next: rd3 evaluate {recipe.key[:12]} {own}--teacher ROLE")
