"""Upgrade a home or a results folder to the current format: ledger, recorded sweep tests, presets, MLflow runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from pipelines.sweep.winner import WinnerTest
from rd3.datasets import Roots, dataset_info
from rd3.errors import RD3Error
from rd3.methods import METHODS
from rd3.planning.teacher_roles import every_role, teacher_recipe, teacher_role
from rd3.protocol import Preset
from rd3.recipe import KINDS, EvaluationRecipe, Key, Recipe, SetRecipe, StatisticsRecipe, read_recipe, recipe_of_kind
from rd3.store import Entry, write_atomically
from rd3.upgrade import FORMAT, former_key, upgraded_sections
from rd3.yaml_numbers import load_with_numbers
from tracking.ledger.ledger import Ledger
from tracking.place import Place
from tracking.runs.runs import DIGEST, Tracker
from tracking.runs.sweeps import SweepRecords
from tracking.upkeep.upgrade import Outcome, upgrade_entries


def upgrade_ledger(ledger: Ledger, roots: Roots) -> Outcome:
    """Upgrade the entries, then the recorded tests of sweeps."""
    outcome = upgrade_entries(ledger, known_parents(ledger, roots))
    _upgrade_tests(ledger, outcome.keys)
    return outcome


def known_parents(ledger: Ledger, roots: Roots) -> dict[Key, Key]:
    """Old to new keys of all teachers with a role on the datasets in the ledger, and of the statistics that sets match.

    Results may come without both, but their recipes follow from roles and methods.
    """
    entries = [entry for kind in ("set", "evaluation") for entry in ledger.find_many(kind, ledger.keys(kind)).values()]
    entries = [entry for entry in entries if entry.recipe.get("format", 1) < FORMAT]
    found = _teachers(entries, roots)
    for entry in entries:
        if entry.recipe.get("statistics"):
            found |= _statistics(recipe_of_kind(entry.recipe, SetRecipe), found, roots)
    return found


def _teachers(entries: list[Entry], roots: Roots) -> dict[Key, Key]:
    found: dict[Key, Key] = {}
    for data in {read_recipe(entry.recipe).data for entry in entries}:
        try:
            info = dataset_info(data.name, roots)
        except RD3Error:  # a user's dataset that is not registered on this machine
            continue
        for name in every_role(info):
            recipe = teacher_recipe(teacher_role(info, name), info, data.fingerprint, data.split)
            found[_former_key(recipe)] = recipe.key
    return found


def _statistics(set_recipe: SetRecipe, teachers: Mapping[Key, Key], roots: Roots) -> dict[Key, Key]:
    """Old to new keys of the statistics of a set whose teachers are known."""
    try:
        method, info = METHODS.get(set_recipe.method), dataset_info(set_recipe.data.name, roots)
        collection = method().needs(info, method.Settings.model_validate(set_recipe.settings), teacher="").collection
    except (RD3Error, ValueError):
        return {}
    found = {}
    for teacher, old in zip(set_recipe.teachers, set_recipe.statistics, strict=False):
        recipe = StatisticsRecipe(
            data=set_recipe.data,
            classes=set_recipe.classes,
            resolution=set_recipe.resolution,
            teacher=teachers.get(teacher, teacher),
            collection=collection,
        )
        if _former_key(recipe, teacher=teacher) == old:
            found[old] = recipe.key
    return found


def _former_key(recipe: Recipe, **former: Key) -> Key:
    """The key of a recipe in format 1, which had ``bf16`` where there is ``auto`` now; ``former``: parents' keys."""
    plain = recipe.model_dump(mode="json") | former
    return former_key(plain | {"precision": "bf16" if plain["precision"] == "auto" else plain["precision"]})


def _upgrade_tests(ledger: Ledger, keys: Mapping[Key, Key]) -> None:
    """Record the tests of winners again under the target (what was tested, as a digest) of the upgraded evaluations.

    The target is the former one where set and data kept their keys; the former record would count as a further winner.
    """
    records = SweepRecords(ledger.objects)
    for test in records.tests():
        moved = {side: [keys.get(key, key) for key in test[side]] for side in ("evaluations", "base")}
        if moved["evaluations"] == test["evaluations"]:
            continue
        sides = {side: list(ledger.find_many("evaluation", found).values()) for side, found in moved.items()}
        if not all(sides.values()):  # never run: its recipes are unknown
            continue
        new = WinnerTest(*([recipe_of_kind(one.recipe, EvaluationRecipe) for one in side] for side in sides.values()))
        records.record_test(new.target, test | moved | {"protocol": new.protocol, "teachers": new.teachers})
        records.forget_test(new.target, test["evaluations"])


def upgrade_presets(folder: Path) -> list[str]:
    """Rewrite the user's own protocols with current field names; returns the files that changed.

    Old files are kept as ``NAME.yaml.former``.  A file with an ``augmentation`` or ``rules`` is in the current format,
    which requires the former; format 1 had neither.  Hidden files are no presets; unreadable ones are left unchanged:
    their next use reports the error.
    """
    changed = []
    for path in sorted(folder.glob("[!.]*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            old = Preset.model_validate(load_with_numbers(text))
            sections = {name: dict(getattr(old, name)) for name in ("all", "same_network", "other_network")}
            if old.rules or any("augmentation" in section for section in sections.values()):
                continue
            new = old.model_copy(update=upgraded_sections(**sections))
        except (OSError, ValueError, TypeError, ArithmeticError, yaml.YAMLError):
            continue
        former = path.with_suffix(".yaml.former")
        if not former.exists():
            write_atomically(former, text)
        plain = yaml.safe_dump(new.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
        write_atomically(path, plain)
        changed.append(path.name)
    return changed


def tag_runs_with_new_keys(place: Place, ledger: Ledger) -> int:
    """Tag the MLflow runs of upgraded entries with their new keys; ``rd3.formerly`` is the old one.

    Covers all entries that were ever upgraded, as an earlier attempt may have been interrupted; returns how many runs
    were tagged.  Runs that MLflow does not have any more are left out.
    """
    entries = [entry for kind in KINDS for entry in ledger.find_many(kind, ledger.keys(kind)).values()]
    waiting = {entry.run_id: entry for entry in entries if entry.formerly and entry.run_id}
    if not waiting:
        return 0
    tracker = Tracker(place)
    with tracker.errors():
        # Of any ledger: the runs of a home that was moved or copied may have its former address.
        found = tracker.search(tracker.experiment_ids(), {}, "tags.`rd3.key` LIKE '%'", of_any_ledger=True)
        untagged = {run.info.run_id for run in found if "rd3.formerly" not in run.data.tags}
        for run_id in waiting.keys() & untagged:
            entry = waiting[run_id]
            tags = {"rd3.key": entry.key, "rd3.formerly": str(entry.formerly), DIGEST: str(entry.sealed().digest)}
            tracker.log(run_id, tags=tags)
    return len(waiting.keys() & untagged)
