"""``rd3 diffusion``: train, import, verify and list the diffusion models that generation-based methods sample from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from pipelines.commands._show import JsonOption, console, progress_bar, show_entries, show_table, source_text
from pipelines.commands.byhand import run_or_exit
from pipelines.settings import session, writing_session

app = Typer(name="diffusion", help="Diffusion backbones: train, import, verify, list.", no_args_is_help=True)


@app.command("train")
def train(
    dataset: Annotated[str, Argument(help="Name of the dataset (rd3 list datasets).")],
    role: Annotated[str, Option(help="Backbone role of the dataset.")] = "dit",
) -> None:
    """Train the small local model of a role; an interrupted training resumes at its last epoch."""
    from pipelines.byhand import backbone_of
    from pipelines.grid.catalog import Catalog
    from rd3.store import existing

    here = writing_session()
    recipe = backbone_of(dataset, role, Catalog.of(here))
    run_or_exit([recipe], here)
    result = existing(here.ledger, "backbone", recipe.key).result
    console.print(f"backbone {recipe.key[:12]}: {_size(result)}, last loss {result['final_loss']:.4f}")


@app.command("import")
def import_model(
    source: Annotated[str, Argument(help="Diffusers folder, or the id of a model on the hub: owner/name.")],
    dataset: Annotated[str, Option(help="Dataset whose classes it is to generate.")],
    family: Annotated[str, Option(help="dit (by class) or text-to-image (by prompt).")] = "dit",
    role: Annotated[str | None, Option(help="Role under which methods refer to it (default: the family).")] = None,
    revision: Annotated[str | None, Option(help="Commit or tag of the model on the hub.")] = None,
    sha256: Annotated[str | None, Option(help="Expected digest of its tensors, or its beginning.")] = None,
) -> None:
    """Import a published diffusion model into the ledger; only safetensors files are read."""
    from rd3.datasets import open_dataset
    from rd3.diffusion.backbone import BackboneManifest
    from rd3.diffusion.foreign import import_backbone
    from rd3.store import Entry
    from tracking.upkeep.health import check_place

    here = writing_session()
    opened = open_dataset(dataset, here.roots)
    check_place(here)
    with tempfile.TemporaryDirectory() as folder, progress_bar("import") as progress:
        recipe, result = import_backbone(
            source, dataset=opened, family=family, out=Path(folder), revision=revision, sha256=sha256, progress=progress
        )
        manifest = BackboneManifest.read(Path(folder))
        here.store.put(Entry.of(recipe, Path(folder), result, content=recipe.weights), Path(folder))
    here.ledger.set_role(dataset, role or family, recipe.model_dump(mode="json"))
    console.print(f"backbone {recipe.key[:12]}: {_size(result)}, role {role or family} of {dataset}")
    console.print(
        f"licence: {manifest.licence or 'not stated'}; revision: {manifest.revision or 'unknown'}; "
        f"tensors: sha256 {result['content'][:12]}",
    )


@app.command("verify")
def verify(
    key: Annotated[str, Argument(help="Key or key prefix of the backbone.")],
    teacher: Annotated[
        str | None, Option(help="Teacher role or network name that classifies generated images.")
    ] = None,
    images: Annotated[int, Option(help="Images to generate per class.", min=1)] = 10,
    guidance: Annotated[float, Option(help="Scale of classifier-free guidance.")] = 4.0,
) -> None:
    """Compare a backbone's tensors with their digest; with a teacher, count the generated images it recognises."""
    from pipelines.workspace import Workspace
    from rd3.diffusion.backbone import BackboneManifest, content_digest, open_backbone
    from rd3.diffusion.recognition import recognition
    from rd3.errors import DataCorrupt
    from rd3.recipe import BackboneRecipe
    from tracking.ledger.ledger import recipe_of

    workspace = Workspace()
    store = workspace.session.store
    entry = store.ledger.named("backbone", key)
    recipe = recipe_of(entry)
    assert isinstance(recipe, BackboneRecipe)
    folder = store.fetch("backbone", entry.key)
    backbone = open_backbone(folder, recipe, workspace.dataset(recipe.data.name).info)
    recorded = BackboneManifest.read(folder).content
    if content_digest(backbone) != recorded:
        raise DataCorrupt(
            f"The tensors of backbone {entry.key[:12]} do not have the digest of its manifest.",
            "train or import it again",
        )
    row = {"backbone": entry.key[:12], "tensors": f"as recorded ({recorded[:12]})"}
    if teacher is not None:
        network = workspace.teacher(recipe.data.name, teacher)
        with progress_bar("generate") as progress:
            found = recognition(backbone, network, images, guidance=guidance, progress=progress)
        row |= {"images": str(len(found.labels)), "recognised": f"{found.pct:.1f} %"}
    show_table([row])


@app.command("list")
def list_backbones(as_json: JsonOption = False) -> None:
    """List the diffusion backbones in the ledger."""
    show_entries(
        session(),
        "backbone",
        lambda entry: {
            "dataset": entry.recipe["data"]["name"],
            "family": entry.recipe["family"],
            "parameters": entry.result.get("parameters"),
            "made": source_text(entry),
        },
        as_json,
    )


def _size(result: dict[str, float]) -> str:
    return f"{result['parameters'] / 1e6:.1f} million parameters"
