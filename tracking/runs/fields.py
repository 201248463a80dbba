"""Fields of a recipe's MLflow run: parameters named as in the RD3 paper, metrics, and curves of at most 100 points.

All fields are flat, so that the columns, filters and charts of the MLflow UI work with them.  The fields of any kind of
recipe become parameters; what a kind shows of its parents is a row of :data:`FACTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rd3.component import changes_text, flat_protocol
from rd3.recipe import BackboneRecipe, EvaluationRecipe, Key, Recipe, RobustnessRecipe, SetRecipe, read_recipe
from rd3.store import Entry

Fact = str | float
"""Value of a parameter that the recipe itself lacks, such as the role of its teacher."""
Find = Callable[[str, Key], Entry | None]
"""Maps (kind, key) to the ledger entry, or None."""

CURVES = ("loss", "lr", "train_top1_pct")
"""Columns of ``curve.parquet``, one row per epoch, that become metrics."""
CURVE_POINTS = 100
_LONGEST = 500
"""Maximum characters of a parameter; ``entry.json`` has longer values in full."""

_HASHES = ("classes", "content", "weights", "fingerprint")
"""Fields that hold a hash (``classes``: of the class list), which is shown with 12 digits, like keys of parents."""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    return str(value)


def params(recipe: Recipe, facts: Mapping[str, Fact]) -> dict[str, str]:
    """Parameters of a run: ``facts`` (names that the recipe lacks, such as the protocol's) and the recipe's fields.

    Nested fields (settings, protocol, training) become parameters of their own; one with the name of another field
    keeps that of its group before it, as in ``settings.resolution``.  Fields that are None are left out.
    """
    flat: dict[str, Any] = dict(facts)
    data = recipe.data
    outer: dict[str, Any] = {"dataset": data.name, "fingerprint": data.fingerprint, "split": data.split}
    outer |= recipe.model_dump(mode="json", exclude={"data", "kind", "format", "normalisation"})
    keys = {key for _kind, key in recipe.parents()}
    nested = {name: outer.pop(name) for name, value in list(outer.items()) if isinstance(value, dict)}
    for name, value in outer.items():
        flat.setdefault(name, _shortened(name, value, keys))
    for group, inside in nested.items():
        for name, value in (flat_protocol(inside) if group == "protocol" else inside).items():
            flat[f"{group}.{name}" if name in flat else name] = value
    return {name: _text(value)[:_LONGEST] for name, value in flat.items() if value is not None}


def _shortened(name: str, value: Any, keys: set[Key]) -> Any:
    """Hashes and ``keys``, also in a list, with 12 digits; None for an empty list."""
    if isinstance(value, list):
        return [one[:12] if one in keys else one for one in value] or None
    return value[:12] if value and (name in _HASHES or value in keys) else value


def parent_facts(recipe: Recipe, find: Find) -> dict[str, Fact]:
    """Facts about a recipe from its parents' entries, under the names that a grid uses (``method``, ``ipc`` ...)."""
    facts = FACTS.get(type(recipe))
    return facts(recipe, find) if facts is not None else {}


def _evaluation_facts(recipe: EvaluationRecipe, find: Find) -> dict[str, Fact]:
    parent = find("set", recipe.set)
    shown = parent.recipe if parent is not None else {}
    facts = {name: shown[name] for name in ("method", "ipc", "set_seed") if shown.get(name) is not None}
    return facts | _teacher_facts(recipe, find)


def _robustness_facts(recipe: RobustnessRecipe, find: Find) -> dict[str, Fact]:
    parent = find("evaluation", recipe.evaluation)
    evaluation = read_recipe(parent.recipe) if parent is not None else None
    if not isinstance(evaluation, EvaluationRecipe):
        return {}
    found: dict[str, Fact] = {"student": evaluation.student, "student_seed": evaluation.student_seed}
    return found | _evaluation_facts(evaluation, find)


def _teacher_facts(recipe: SetRecipe | EvaluationRecipe, find: Find) -> dict[str, Fact]:
    networks = [entry.recipe["network"] for key in recipe.teachers if (entry := find("teacher", key)) is not None]
    return {"teacher": ",".join(networks)} if networks else {}


def _set_facts(recipe: SetRecipe, find: Find) -> dict[str, Fact]:
    backbones = [read_recipe(entry.recipe) for key in recipe.backbones if (entry := find("backbone", key)) is not None]
    named = [
        f"{one.family}, {'imported' if one.imported else 'a small one trained here'}"
        for one in backbones
        if isinstance(one, BackboneRecipe)
    ]
    return _teacher_facts(recipe, find) | ({"backbone": "; ".join(named)} if named else {})


FACTS: dict[type[Recipe], Callable[[Any, Find], dict[str, Fact]]] = {
    SetRecipe: _set_facts,
    EvaluationRecipe: _evaluation_facts,
    RobustnessRecipe: _robustness_facts,
}
"""What a run shows of the recipe's parents; nothing for kinds that are not listed."""


def cell_facts(cell: Mapping[str, Any], *, of_set: bool = False) -> dict[str, Fact]:
    """The grid's names for an evaluation, or for its set, from the fields of a :class:`rd3.cell.Cell`."""
    facts: dict[str, Fact] = {name: cell[name] for name in ("method", "dataset", "ipc")}
    if of_set or cell["labels"] == "soft":
        facts["teacher"] = cell["teacher"]
    if cell["set_seed"] is not None:
        facts["set_seed"] = cell["set_seed"]
    if of_set:
        return facts
    facts |= {name: cell[name] for name in ("student", "protocol", "student_seed")}
    changed = changes_text({**cell["overrides"], **cell["varied"]})
    return facts | ({"changed": changed} if changed else {})


def input_set(recipe: Recipe, find: Find) -> dict[str, Any] | None:
    """The set of an evaluation as an input of its MLflow run; None for other recipes, and if its entry is missing."""
    entry = find("set", recipe.set) if isinstance(recipe, EvaluationRecipe) else None
    if entry is None:
        return None
    name = f"{entry.recipe['method']} {entry.recipe['data']['name']} ipc{entry.recipe['ipc']}"
    return {"name": name, "digest": entry.content, "source": entry.artifact}


def run_name(recipe: Recipe, facts: Mapping[str, Fact]) -> str:
    """Name of the run, such as ``rded cifar10 ipc10 seed0.2 temperature=4 -> resnet18``, with set and student seed.

    It begins with what tells the runs of a grid apart, as the UI cuts long names.
    """
    if isinstance(recipe, SetRecipe) and recipe.method:
        seed = "" if recipe.set_seed is None else f" seed{recipe.set_seed}"
        return f"{recipe.method} {recipe.data.name} ipc{recipe.ipc}{seed} set"
    if isinstance(recipe, EvaluationRecipe):
        return _student_name(recipe, facts, recipe.student, recipe.student_seed)
    if isinstance(recipe, RobustnessRecipe) and {"student", "student_seed"} <= set(facts):
        name = _student_name(recipe, facts, facts["student"], facts["student_seed"])
        return f"{name} robustness" if "method" in facts else name
    return recipe.label()


def _student_name(recipe: Recipe, facts: Mapping[str, Fact], student: Fact, student_seed: Fact) -> str:
    """What a student was trained on, its seeds and its network; the recipe's label if the method is not known."""
    if "method" not in facts:
        return recipe.label()
    size = f" ipc{facts['ipc']}" if "ipc" in facts else ""
    seed = f"{facts['set_seed']}.{student_seed}" if "set_seed" in facts else f"{student_seed}"
    changed = f" {facts['changed']}" if facts.get("changed") else ""
    return f"{facts['method']} {recipe.data.name}{size} seed{seed}{changed} -> {student}"


def origin(entry: Entry, source: str) -> str:
    """Where an imported result comes from, as a sentence."""
    made = entry.made
    where = ", ".join(str(made[name]) for name in ("device", "host") if made.get(name))
    when = f" at {made['finished_at']}" if made.get("finished_at") else ""
    return f"Imported from {source}; computed{when}{f' on {where}' if where else ''}."


def span_ms(entry: Entry) -> tuple[int, int] | None:
    """When the result was computed, in ms since 1970: start and end; None for an entry that does not say."""
    try:
        ended = datetime.fromisoformat(entry.made["finished_at"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    taken = entry.result.get("wall_s", entry.result.get("generation_wall_s", 0.0))
    return round(1000 * (ended - float(taken))), round(1000 * ended)


def note(recipe: Recipe, find: Find, origin: str = "") -> str:
    """Description of the run in Markdown, with links to the runs of the recipe's parents; ``origin`` comes first."""
    lines = [f"{origin}\n"] if origin else []
    lines.append(f"Download the files: `rd3 artifacts fetch {recipe.key[:12]}`.\n")
    for kind, key in recipe.parents():
        entry = find(kind, key)
        label = read_recipe(entry.recipe).label() if entry is not None else kind
        link = f"[{label}](#/runs/{entry.run_id})" if entry is not None and entry.run_id else label
        lines.append(f"- made from {link}, key `{key[:12]}`")
    return "\n".join(lines)


def metrics(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every finite number of an entry's result; nested ones as ``outer.inner``."""
    flat: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            flat |= metrics(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def curve_points(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, float, int]]:
    """Points (metric, value, epoch) of the curves to log, without values that are not finite.

    Of at most :data:`CURVE_POINTS` rows, evenly spaced, including the first and the last.
    """
    count = min(len(rows), CURVE_POINTS)
    shown = [rows[round(place * (len(rows) - 1) / max(1, count - 1))] for place in range(count)]
    return [
        (name, float(row[name]), int(row.get("epoch", place)))
        for place, row in enumerate(shown)
        for name in CURVES
        if name in row and math.isfinite(row[name])
    ]


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The rows of ``curve.parquet`` in a result folder; empty if there is no such file."""
    path = folder / "curve.parquet"
    if not path.is_file():
        return []
    from pyarrow import parquet

    rows: list[dict[str, float]] = parquet.read_table(path).to_pylist()
    return rows
