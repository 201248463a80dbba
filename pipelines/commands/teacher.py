"""``rd3 teacher``: train, import, verify and list teachers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option, Typer

from pipelines.commands._show import JsonOption, console, progress_bar, show_entries, show_table, source_text
from pipelines.commands.byhand import run_or_exit
from pipelines.settings import session, writing_session

if TYPE_CHECKING:
    from rd3.recipe import SourceSplit

app = Typer(name="teacher", help="Teachers: train, import, verify, list.", no_args_is_help=True)


@app.command("train")
def train(
    dataset: Annotated[str, Argument(help="Name of the dataset (rd3 list datasets).")],
    role: Annotated[str, Option(help="Teacher role of the dataset, or a network name.")],
) -> None:
    """Train the teacher of a role; an interrupted training resumes at its last epoch."""
    from pipelines.byhand import teacher_of
    from pipelines.grid.catalog import Catalog
    from rd3.store import existing

    here = writing_session()
    recipe = teacher_of(dataset, role, Catalog.of(here))
    run_or_exit([recipe], here)
    result = existing(here.ledger, "teacher", recipe.key).result
    console.print(f"teacher {recipe.key[:12]}: {result['top1_pct']:.2f} % on {result['tested']} test images")


@app.command("import")
def import_teacher(
    source: Annotated[str, Argument(help="State dict (.safetensors, .pt), or torchvision:resnet18.")],
    dataset: Annotated[str, Option(help="Dataset whose classes it predicts.")],
    network: Annotated[str, Option(help="Network of the weights.")] = "resnet18",
    role: Annotated[str | None, Option(help="Role under which grids refer to it (default: the network name).")] = None,
    split: Annotated[str, Option(help="Split it was trained on: train, fit or unknown.")] = "unknown",
    prune: Annotated[bool, Option(help="Keep only this dataset's classes of a 1,000-class head.")] = False,
    normalised: Annotated[
        str | None,
        Option(
            metavar="NAME|MEAN/STD",
            help="Constants of its training: imagenet, cifar10, half (pixels in [-1, 1]), none (in [0, 1]), "
            "0.5,0.5,0.5/0.25,0.25,0.25, ... (default: the dataset's own).",
        ),
    ] = None,
    class_order: Annotated[
        str | None,
        Option(
            metavar="FILE|found",
            help="The class of each output, one per line, by id, name or label; or `found`: the order that its "
            "predictions on training images show.",
        ),
    ] = None,
    entry: Annotated[
        str | None, Option(help="Where in the file the weights are, if several networks fit: model_ema, ...")
    ] = None,
    allow_chance: Annotated[
        bool, Option("--allow-chance", help="Import a network that is not better than chance.")
    ] = False,
) -> None:
    """Import a trained network into the ledger and test it on this dataset."""
    from pipelines.byhand import role_change
    from rd3.datasets import open_dataset
    from rd3.errors import BadValue
    from rd3.known_constants import spelled
    from rd3.store import Entry
    from rd3.teacher import import_weights
    from rd3.teacher.class_order import FOUND, read_class_order
    from tracking.upkeep.health import check_place

    if split not in ("train", "fit", "unknown"):
        raise BadValue(f"Invalid --split {split!r}.", "use train, fit or unknown")
    order = read_class_order(class_order) if class_order not in (None, FOUND) else class_order
    here = writing_session()
    opened = open_dataset(dataset, here.roots)
    check_place(here)
    notices: list[str] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar(f"test {network}") as progress:
        recipe, result = import_weights(
            source,
            dataset=opened,
            network=network,
            out=Path(folder),
            normalisation=normalised,
            split=cast("SourceSplit", split),
            prune_to_classes=prune,
            class_order=order,
            entry=entry,
            allow_chance=allow_chance,
            device="cpu",
            progress=progress,
            notice=notices.append,
        )
        here.store.put(Entry.of(recipe, Path(folder), result, content=recipe.weights), Path(folder))
    change = role_change(dataset, role or network, recipe, here)
    here.ledger.set_role(dataset, role or network, recipe.model_dump(mode="json"))
    console.print(f"teacher {recipe.key[:12]}: {result['top1_pct']:.2f} % on {result['tested']} test images")
    own = ", the dataset's own" if recipe.normalisation == opened.info.normalisation else ""
    console.print(f"pixels normalised with {spelled(recipe.normalisation)}{own}", change, *notices, sep="\n")


@app.command("verify")
def verify(key: Annotated[str, Argument(help="Key or key prefix of the teacher.")]) -> None:
    """Recount the correct predictions of a teacher on its recorded images."""
    from rd3 import teacher
    from rd3.datasets import open_dataset
    from rd3.recipe import TeacherRecipe
    from tracking.ledger.ledger import recipe_of

    here = session()
    store = here.store
    entry = here.ledger.named("teacher", key)
    recipe = recipe_of(entry)
    assert isinstance(recipe, TeacherRecipe)
    found = teacher.verify(
        store.fetch("teacher", entry.key),
        recipe,
        open_dataset(recipe.data.name, here.roots),
        device="cpu",
        formerly=entry.formerly,
    )
    show_table([found])


@app.command("list")
def list_teachers(as_json: JsonOption = False) -> None:
    """List the teachers in the ledger."""
    show_entries(
        session(),
        "teacher",
        lambda entry: {
            "dataset": entry.recipe["data"]["name"],
            "network": entry.recipe["network"],
            "top1_pct": entry.result.get("top1_pct"),
            "made": source_text(entry),
        },
        as_json,
    )
