"""A home, or a folder of results, in today's format: ledger, tests of sweeps on record, presets, MLflow runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.sweep.winner import protocol_of, target_of
from rd3.datasets import DatasetInfo
from rd3.errors import RD3Error
from rd3.methods import METHODS
from rd3.planning.teacher_roles import every_role, teacher_recipe, teacher_role
from rd3.protocol import Preset
from rd3.recipe import KINDS, EvaluationRecipe, Key, SetRecipe, StatisticsRecipe, read_recipe, recipe_of_kind
from rd3.store import Entry, write_atomically
from rd3.upgrade import FORMAT, former_key, upgraded_sections
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import SweepRecords
from tracking.upkeep.upgrade import Outcome, upgrade_entries

InfoOf = Callable[[str], DatasetInfo]


def upgrade_ledger(ledger: Ledger, info_of: InfoOf) -> Outcome:
    """Entries, then the tests of sweeps that are on record."""
    outcome = upgrade_entries(ledger, known_parents(ledger, info_of))
    _upgrade_tests(ledger, outcome.keys)
    return outcome


def known_parents(ledger: Ledger, info_of: InfoOf) -> dict[Key, Key]:
    """Old keys to new ones of every teacher that has a role on the data of the ledger's sets and evaluations.

    And of the statistics that sets match.  Results may lack both, but their recipes follow from roles and methods.
    """
    entries = [entry for kind in ("set", "evaluation") for entry in ledger.find_many(kind, ledger.keys(kind)).values()]
    entries = [entry for entry in entries if entry.recipe.get("format", 1) < FORMAT]
    found = _teachers(entries, info_of)
    for entry in entries:
        if entry.recipe.get("statistics"):
            found |= _statistics(recipe_of_kind(entry.recipe, SetRecipe), found, info_of)
    return found


def _teachers(entries: list[Entry], info_of: InfoOf) -> dict[Key, Key]:
    found: dict[Key, Key] = {}
    for data in {read_recipe(entry.recipe).data for entry in entries}:
        try:
            info = info_of(data.name)
        except RD3Error:  # a dataset of the user's that this machine does not know
            continue
        for name in every_role(info):
            recipe = teacher_recipe(teacher_role(info, name), info, data.fingerprint, data.split)
            found[former_key(_former(recipe.model_dump(mode="json")))] = recipe.key
    return found


def _statistics(made: SetRecipe, teachers: Mapping[Key, Key], info_of: InfoOf) -> dict[Key, Key]:
    """Of the statistics of a set whose teachers are known."""
    try:
        method, info = METHODS.get(made.method), info_of(made.data.name)
        collection = method().needs(info, method.Settings.model_validate(made.settings), "").collection
    except (RD3Error, ValueError):
        return {}
    found = {}
    for teacher, old in zip(made.teachers, made.statistics, strict=False):
        recipe = StatisticsRecipe(
            data=made.data,
            classes=made.classes,
            resolution=made.resolution,
            teacher=teachers.get(teacher, teacher),
            collection=collection,
        )
        if former_key(_former(recipe.model_dump(mode="json")) | {"teacher": teacher}) == old:
            found[old] = recipe.key
    return found


def _former(plain: dict[str, Any]) -> dict[str, Any]:
    precision = "bf16" if plain["precision"] == "auto" else plain["precision"]
    return {name: value for name, value in plain.items() if name != "format"} | {"precision": precision}


def _upgrade_tests(ledger: Ledger, keys: Mapping[Key, Key]) -> None:
    """Tests of winners on record, under the target that their upgraded evaluations have."""
    records = SweepRecords(ledger.objects)
    for test in records.all_tests():
        moved = {side: [keys.get(key, key) for key in test[side]] for side in ("evaluations", "base")}
        if moved["evaluations"] == test["evaluations"]:
            continue
        sides = {side: list(ledger.find_many("evaluation", found).values()) for side, found in moved.items()}
        if not all(sides.values()):  # never made: nothing says what it was of
            continue
        winner, base = (
            [recipe_of_kind(entry.recipe, EvaluationRecipe) for entry in sides[side]]
            for side in ("evaluations", "base")
        )
        records.record_test(target_of(base), test | moved | {"protocol": protocol_of(winner)})


def upgrade_presets(folder: Path) -> list[str]:
    """The user's own protocols in today's names; which files changed.  Each old file stays as ``NAME.yaml.former``.

    A file that says an ``augmentation`` is of today's form.  One that cannot be read stays as it is: its next
    use says why.
    """
    changed = []
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        try:
            old = Preset.model_validate(yaml.safe_load(text))
            sections = {name: dict(getattr(old, name)) for name in ("all", "same_network", "other_network")}
            if any("augmentation" in section for section in sections.values()):
                continue
            new = old.model_copy(update=upgraded_sections(**sections))
        except (ValueError, TypeError, ArithmeticError, yaml.YAMLError):
            continue
        former = path.with_suffix(".yaml.former")
        if not former.exists():
            write_atomically(former, text)
        plain = yaml.safe_dump(new.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
        write_atomically(path, plain)
        changed.append(path.name)
    return changed


def tag_runs(place: Place, ledger: Ledger) -> int:
    """Let MLflow find the runs of upgraded entries under their new keys; ``rd3.formerly`` is the old one.

    Of all that were ever upgraded, as an earlier attempt may have been cut short; how many lacked it.
    """
    entries = [entry for kind in KINDS for entry in ledger.find_many(kind, ledger.keys(kind)).values()]
    waiting = {entry.run_id: entry for entry in entries if entry.formerly and entry.run_id}
    if not waiting:
        return 0
    tracker = Tracker(place)
    with tracker.errors():
        experiments = [experiment.experiment_id for experiment in tracker.client.search_experiments()]
        runs = tracker.search(experiments, {"rd3.ledger": place.artifacts}) if experiments else []
        tagged = {run.info.run_id for run in runs if "rd3.formerly" in run.data.tags}
        for run_id in waiting.keys() - tagged:
            entry = waiting[run_id]
            tracker.log(run_id, tags={"rd3.key": entry.key, "rd3.formerly": str(entry.formerly)})
    return len(waiting.keys() - tagged)
