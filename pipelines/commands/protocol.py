"""``rd3 protocol``: what distinguishes two evaluation protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands._show import JsonOption, console, show_table
from pipelines.settings import session

if TYPE_CHECKING:
    from rd3.protocol import EvalProtocol

app = typer.Typer(help="Evaluation protocols: compare two of them.", no_args_is_help=True)
_ANY_SIZE = 10**9
"""Images of a set at which no batch size is capped."""


@app.callback()
def protocols() -> None:
    """Keeps ``diff`` a command of its own."""


@app.command("diff")
def diff(
    first: Annotated[str, typer.Argument(help="Name of a protocol (rd3 list protocols).")],
    second: Annotated[str, typer.Argument(help="Name of the other.")],
    dataset: Annotated[str, typer.Option(help="Dataset for which both are resolved.")] = "imagenet1k",
    ipc: Annotated[int, typer.Option(min=1, help="Images per class for which both are resolved.")] = 10,
    student: Annotated[str, typer.Option(help="Student for which both are resolved.")] = "resnet18",
    as_json: JsonOption = False,
) -> None:
    """List the values in which two protocols differ, by student: with the teacher's network, and with another one."""
    from pipelines.grid.catalog import Catalog, Frame
    from rd3.datasets import dataset_info
    from rd3.models import network_info

    here = session()
    catalog, info = Catalog.of(here), dataset_info(dataset, here.roots)
    network_info(student)
    rows = []
    for label, same in (("same network as the teacher", True), ("another network", False)):
        frame = Frame(info.factor, same, _ANY_SIZE, student, info.name, info.num_classes, ipc)
        one, other = (catalog.evaluation(name, frame, {}) for name in (first, second))
        rows += [
            {"student": label, "value": name, first: own, second: others}
            for name, (own, others) in differences(one, other).items()
        ]
    if rows or as_json:
        show_table(rows, as_json=as_json)
    else:
        console.print(f"{first} and {second} are equal on {dataset}", soft_wrap=True)


def differences(one: EvalProtocol, other: EvalProtocol) -> dict[str, tuple[str, str]]:
    """Values by name in which two resolved protocols differ, as text.

    Settings of a loss or of the augmentations are listed apart where both protocols have the same ones.
    """
    from rd3.component import plain_text
    from rd3.protocol import protocol_names

    found = {}
    for name in protocol_names():
        values = one.value(name), other.value(name)
        if values[0] == values[1] or (name in ("loss", "augmentation") and _alike(*values)):
            continue
        other_loss = "." not in name and one.loss.name != other.loss.name
        if name in type(one).model_fields or not (None in values or other_loss):
            found[name] = plain_text(values[0]), plain_text(values[1])
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two losses or lists of augmentations have the same names."""

    def names(value: Any) -> list[str]:
        return [name for item in (value if isinstance(value, list) else [value]) for name in item]

    return names(one) == names(other)
