"""``rd3 protocol``: what an evaluation protocol is, and what distinguishes two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, Typer

from pipelines.commands._show import JsonOption, console, show_table
from pipelines.settings import session
from rd3.errors import RD3Error

if TYPE_CHECKING:
    from rd3.datasets import DatasetInfo
    from rd3.protocol import EvalProtocol, Preset

app = Typer(name="protocol", help="Evaluation protocols: show one, compare two.", no_args_is_help=True)
_ANY_SIZE = 10**9
"""Images of a set at which no batch size is capped."""
_DATASET = "imagenet1k"
_STUDENTS = {"same network as the teacher": True, "another network": False}
Row = dict[str, str]

IpcOption = Annotated[int, Option(min=1, help="Images per class for which rules are resolved.")]
StudentOption = Annotated[str, Option(help="Student for which rules are resolved.")]


@app.command("show")
def show(
    name: Annotated[str, Argument(help="Name of a protocol (rd3 list protocols).")],
    dataset: Annotated[str, Option(help="Dataset for which rules are resolved.")] = _DATASET,
    ipc: IpcOption = 10,
    student: StudentOption = "resnet18",
    as_json: JsonOption = False,
) -> None:
    """Show where a protocol comes from, what it does otherwise, what it lacks, and its values by student."""
    from rd3.component import plain_text
    from rd3.datasets import dataset_info
    from rd3.models import network_info

    [preset], info = _presets(name), dataset_info(dataset, session().roots)
    network_info(student)
    found = {label: _resolved(preset, info, ipc, student, same=same) for label, same in _STUDENTS.items()}
    about = [("source", preset.source), *(("deviates", each) for each in preset.deviates)]
    about += [("missing", each) for each in preset.incomplete]
    rows = [
        {"value": field} | {label: plain_text(each.value(field)) for label, each in found.items()}
        for field in next(iter(found.values())).model_dump()
    ]
    if as_json:
        rows = [{"value": what, **dict.fromkeys(found, text)} for what, text in about] + rows
    else:
        for what, text in about:
            console.print(f"{what}: {text}")
    show_table(rows, as_json=as_json)


@app.command("diff")
def diff(
    first: Annotated[str, Argument(help="Name of a protocol (rd3 list protocols).")],
    second: Annotated[str, Argument(help="Name of the other.")],
    dataset: Annotated[str | None, Option(help=f"Dataset for which rules are resolved [{_DATASET}].")] = None,
    ipc: IpcOption = 10,
    student: StudentOption = "resnet18",
    as_json: JsonOption = False,
) -> None:
    """List the values in which two protocols differ, by student: with the teacher's network, and with another one.

    What an incomplete protocol lacks is listed beside the values that it has.
    """
    from rd3.datasets import dataset_info, dataset_names
    from rd3.models import network_info

    roots, (one, other) = session().roots, _presets(first, second)
    network_info(student)

    def rows_for(name: str) -> list[Row]:
        return _differing(one, other, dataset_info(name, roots), ipc, student)

    rows = rows_for(dataset or _DATASET)
    if rows or as_json:
        show_table(rows, as_json=as_json)
        return
    elsewhere = [] if dataset else [name for name in dataset_names(roots) if _differ(rows_for, name)]
    where = dataset or (_DATASET if elsewhere else "every dataset")
    differ = f", and differ on {', '.join(elsewhere)}: give --dataset" if elsewhere else ""
    console.print(f"{first} and {second} are equal on {where} for student {student} at IPC {ipc}{differ}")


def _differ(rows_for: Callable[[str], list[Row]], dataset: str) -> bool:
    """Whether both protocols have all values on a dataset, and differ there."""
    try:
        return bool(rows_for(dataset))
    except RD3Error:
        return False


def _presets(*names: str) -> list[Preset]:
    """Presets by name, with those of the user, whose rules are checked."""
    from pipelines.grid.catalog import Catalog

    catalog = Catalog.of(session())
    return [catalog.protocol(name) for name in names]


def _resolved(preset: Preset, info: DatasetInfo, ipc: int, student: str, *, same: bool) -> EvalProtocol:
    """A preset for one student; an incomplete one without what it lacks, to be shown and not to be used."""
    from pipelines.grid.catalog import Frame
    from rd3.preset_rules import Case

    frame = Frame(info.factor, _ANY_SIZE, Case(same, student, info.name, info.num_classes, ipc))
    return frame.resolve(preset.model_copy(update={"incomplete": ()}), {})


def _differing(one: Preset, other: Preset, info: DatasetInfo, ipc: int, student: str) -> list[Row]:
    """A row for every value in which two presets differ, by student, and one for what they lack."""
    rows = []
    for label, same in _STUDENTS.items():
        pair = (_resolved(preset, info, ipc, student, same=same) for preset in (one, other))
        rows += [
            {"student": label, "value": name, one.name: own, other.name: others}
            for name, (own, others) in differences(*pair).items()
        ]
    if one.incomplete != other.incomplete:
        lacking = {preset.name: "; ".join(preset.incomplete) or "nothing" for preset in (one, other)}
        rows.append({"student": "every", "value": "missing", **lacking})
    return rows


def differences(one: EvalProtocol, other: EvalProtocol) -> dict[str, tuple[str, str]]:
    """Values by name in which two resolved protocols differ, as text.

    Settings of a loss or of the augmentations are listed apart where both protocols have the same ones.
    """
    from rd3.component import plain_text
    from rd3.protocol import protocol_names

    found = {}
    for name in protocol_names():
        values = one.value(name), other.value(name)
        if values[0] == values[1] or (name in ("loss", "augmentation") and _names(values[0]) == _names(values[1])):
            continue
        # Names without a dot are fields or settings of losses; a value is None where the protocol lacks the setting.
        other_loss = "." not in name and one.loss.name != other.loss.name
        if name in type(one).model_fields or not (None in values or other_loss):
            found[name] = plain_text(values[0]), plain_text(values[1])
    return found


def _names(value: Any) -> list[str]:
    """Names in the value of a loss or of a list of augmentations: mappings of a name to its settings."""
    return [name for component in (value if isinstance(value, list) else [value]) for name in component]
