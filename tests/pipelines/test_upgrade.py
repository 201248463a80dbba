"""A home and a folder of results made by version 0.1.0 (``tests/data/format1.tar.xz``), in today's format."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import plan_session
from pipelines.settings import Session
from pipelines.sweep.winner import WinnerTest
from pipelines.transfer.results import import_results
from pipelines.upgrade import tag_runs_with_new_keys, upgrade_ledger, upgrade_presets
from rd3.errors import BadValue
from rd3.perform import perform
from rd3.protocol import preset_reader, resolve_protocol
from rd3.recipe import EvaluationRecipe, Recipe, SetRecipe, TeacherRecipe, key_of, read_recipe, recipe_of_kind
from rd3.store import FolderStore
from rd3.upgrade import former_key
from tracking.ledger.ledger import Ledger, recipe_of
from tracking.place import Place
from tracking.runs.runs import Tracker
from tracking.runs.sweeps import SweepRecords
from tracking.store import TrackedStore
from tracking.upkeep.garbage import find_garbage
from tracking.upkeep.verify import check_entries, everything

ARCHIVE = Path(__file__).parents[1] / "data" / "format1.tar.xz"
MADE_IN = "/tmp/rd3-earlier"

GRID = """
name: earlier
methods: [random, {rded: {mipc: 20}}, {gvbsm: {iterations: 3, pool: [convnet_w32]}}]
datasets: [digits]
ipc: [1]
teacher: convnet_w32
protocols: [{rd3-reduced: {epochs: 2}}]
student_seeds: [0, 1]
also:
  - methods: [random]
    vary:
      temperature: [4.0]
      precision: [fp32]
      loss: [mse_gt]
      augmentation: [[flip], [{patch_shuffle: {grid: 2}}, {resized_crop: {min_area: 0.5}}, flip, cutmix]]
  - methods: [random]
    protocols: [{rd3-reduced: {epochs: 2, labels: hard, hard_mix: base, augmentation: [cutmix]}}]
  - methods: [random]
    ipc: [2]
    student_seeds: [0]
"""
"""``earlier.yaml`` of the archive in today's words."""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """What the archive holds, moved here."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    home = tmp_path / "home"
    for path in (home / "artifacts" / "by-key").rglob("*.json"):
        path.write_text(path.read_text().replace(MADE_IN, str(tmp_path)))
    with sqlite3.connect(home / "mlflow.db") as database:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location"), ("tags", "value")):
            database.execute(f"update {table} set {column} = replace({column}, ?, ?)", (MADE_IN, str(tmp_path)))
    place = Place(tracking_uri=f"sqlite:///{home / 'mlflow.db'}", artifacts=str(home / "artifacts"), home=home)
    return Session(place.tracking_uri, place.artifacts, place.home)


def expanded(session: Session) -> Expansion:
    from pipelines.grid.catalog import Catalog
    from pipelines.grid.expand import expand
    from pipelines.grid.files import parse_grid

    return expand(parse_grid(GRID, "earlier"), Catalog.of(session))


def totals(session: Session) -> dict[str, int]:
    Ledger(session.artifacts)
    return {name: count for name, count in plan_session(expanded(session), session).totals().items() if count}


def upgraded(session: Session, ledger: Ledger | None = None):
    return upgrade_ledger(ledger or Ledger(session.artifacts), session.roots)


def test_nothing_is_made_again(session):
    """The grid of then, written in the words of now, is all there; results and digests are those of then."""
    ledger = Ledger(session.artifacts)
    before = {key: ledger.find(kind, key) for kind in ("set", "evaluation") for key in ledger.keys(kind)}
    assert ledger.older_format() and totals(session) == {"reuse": 2, "run": 23}  # random sets alone kept their keys
    outcome = upgraded(session)
    assert len(outcome.upgraded) == 23 and not outcome.left
    assert totals(session) == {"reuse": 25} and not ledger.older_format()
    for old, entry in before.items():
        now = ledger.find(entry.kind, outcome.keys[old])
        assert (now.content, now.files, now.artifact, now.run_id) == (
            *(entry.content, entry.files, entry.artifact, entry.run_id),
        )
        assert now.result.items() >= entry.result.items()
        assert now.formerly == (old if outcome.keys[old] != old else None)
        if entry.kind == "evaluation":
            assert now.result["ran_precision"] == entry.recipe["protocol"]["precision"]
    assert not upgraded(session).upgraded


def test_what_waits_for_its_upgrade_is_not_called_damaged(session):
    store = TrackedStore(session)
    checked = list(check_entries(store, everything(store.ledger)))
    assert len(checked) == 25 and not [one for one in checked if one.damage]


def test_two_entries_of_one_experiment_become_one_and_no_file_is_lost(session):
    """Format 1 had keys of their own for settings that a loss does not read."""
    ledger = Ledger(session.artifacts)
    entries = [ledger.find("evaluation", key) for key in ledger.keys("evaluation")]
    first = next(entry for entry in entries if entry.recipe["protocol"]["loss"] == "kl")
    recipe = first.recipe | {"protocol": first.recipe["protocol"] | {"gamma": 0.5}}
    twin = first.model_copy(update={"recipe": recipe, "key": former_key(recipe), "run_id": "another"})
    ledger.add(twin)
    outcome = upgraded(session)
    assert len(outcome.upgraded) == 23 and len(outcome.merged) == 1
    assert outcome.keys[first.key] == outcome.keys[twin.key]
    garbage = [one.where for one in find_garbage(session, ledger, driver_lives=False)]
    assert not [where for where in garbage if any(str(entry.run_id) in where for entry in entries)]


def test_files_are_found_and_hold_what_is_asked_for(session):
    upgraded(session)
    store = TrackedStore(session)
    for kind in ("teacher", "statistics", "set", "evaluation"):
        for key in store.ledger.keys(kind):
            store.fetch(kind, key)


def test_new_work_begins_from_old_teachers_statistics_and_sets(session, tmp_path):
    upgraded(session)
    store, recipes = TrackedStore(session), expanded(session).recipes.values()
    matched = next(one for one in recipes if isinstance(one, SetRecipe) and one.method == "gvbsm")
    soft = next(one for one in recipes if isinstance(one, EvaluationRecipe) and one.set == matched.key)
    for one in (
        matched.model_copy(update={"set_seed": 1}),
        soft.model_copy(update={"student_seed": 7}),
    ):
        entry = perform(one, store, session.roots, tmp_path / one.key)
        assert entry.key == one.key


def test_old_entries_are_out_of_sight_and_go_when_told(session, monkeypatch):
    for name, value in (
        ("RD3_HOME", session.home), ("RD3_ARTIFACTS", session.artifacts), ("MLFLOW_TRACKING_URI", "")
    ):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    ledger = Ledger(session.artifacts)
    old = {kind: ledger.keys(kind) for kind in ("teacher", "evaluation")}
    said = CliRunner().invoke(app, ["ledger", "upgrade"]).output
    assert said.startswith("23 entries of ") and "protocols upgraded: mine.yaml" in said
    for kind, keys in old.items():
        assert not keys & ledger.keys(kind) and len(keys) == len(ledger.keys(kind))
        assert all(ledger.find(kind, key) is not None for key in keys)
    [teacher] = old["teacher"]
    assert ledger.resolve("teacher", teacher[:12]) in ledger.keys("teacher"), "people wrote the old key down"
    assert "23 old entries removed" in CliRunner().invoke(app, ["ledger", "upgrade", "--remove-old"]).output
    assert ledger.find("teacher", teacher) is None and totals(session) == {"reuse": 25}
    assert ledger.resolve("teacher", teacher[:12]) in ledger.keys("teacher")


def test_mlflow_finds_the_runs_under_their_new_keys(session):
    """Also of an attempt that was cut short before it came to that."""
    outcome = upgraded(session)
    assert not upgraded(session).upgraded
    ledger = Ledger(session.artifacts)
    tracker = Tracker(session)
    run_ids = [ledger.find(one.kind, one.new).run_id for one in outcome.upgraded]
    tracker.client.delete_run(run_ids[-1])
    assert [tag_runs_with_new_keys(session, ledger) for _again in range(2)] == [22, 0]
    for one, run_id in zip(outcome.upgraded[:3], run_ids, strict=False):
        tags = tracker.client.get_run(run_id).data.tags
        assert (tags["rd3.key"], tags["rd3.formerly"]) == (one.new, one.old)


def test_a_folder_of_results_is_asked_for_its_upgrade_and_comes_in_after_it(session, tmp_path):
    fresh = tmp_path / "fresh"
    place = Place(tracking_uri=f"sqlite:///{fresh / 'mlflow.db'}", artifacts=str(fresh / "artifacts"), home=fresh)
    new = Session(place.tracking_uri, place.artifacts, place.home)
    with pytest.raises(BadValue, match=r"is of an older format.*rd3 ledger upgrade"):
        import_results(tmp_path / "results", new)
    results = Ledger(str(tmp_path / "results"))
    assert len(upgraded(new, results).upgraded) == 23
    assert len(import_results(tmp_path / "results", new)) == 25
    assert totals(new) == {"reuse": 25}


def test_results_come_without_their_teachers(session, tmp_path):
    """Whose recipes are known, because roles ship; a teacher that nobody knows leaves what was made from it."""
    results = Ledger(str(tmp_path / "results"))
    [teacher] = results.keys("teacher")
    results.forget("teacher", teacher)
    outcome = upgraded(session, results)
    assert not outcome.left and len(outcome.upgraded) == 22
    folder = FolderStore(tmp_path / "results")
    matched = next(
        entry for key in results.keys("set") if (entry := folder.find("set", key)).recipe["method"] == "gvbsm"
    )
    assert folder.fetch("set", matched.key).name == matched.formerly


def test_what_is_made_from_an_unknown_teacher_is_left(session, tmp_path):
    results = Ledger(str(tmp_path / "results"))
    [teacher] = results.keys("teacher")
    entry = results.find("teacher", teacher)
    results.forget("teacher", teacher)
    plain = entry.recipe | {"seed": 99}
    for kind in ("statistics", "set", "evaluation"):
        for key in results.keys(kind):
            one = results.find(kind, key)
            text = one.model_dump_json().replace(teacher, former_key(plain))
            changed = type(one).model_validate_json(text)
            changed = changed.model_copy(update={"key": former_key(changed.recipe)})
            results.forget(kind, key)
            results.add(changed)
    outcome = upgraded(session, results)
    assert outcome.left and all(former_key(plain)[:12] in one.reason for one in outcome.left)
    assert all(results.find(one.kind, one.key) is not None for one in outcome.left)


def test_tests_of_sweeps_stay_on_record(session):
    ledger = Ledger(session.artifacts)
    records = SweepRecords(ledger.objects)
    keys = sorted(key for key in ledger.keys("evaluation") if ledger.find("evaluation", key).recipe["teachers"])
    test = {
        **{"sweep": "s", "key": "k", "method": "random", "params": {}, "validation_top1_pct": 50.0},
        **{"protocol": "old", "evaluations": keys[:1], "base": keys[1:2], "seeds": [0], "recorded_at": "2026-01-01"},
    }
    records.record_test("an old target", test)
    outcome = upgraded(session)
    winner, base = (recipe_of(ledger.find("evaluation", outcome.keys[key])) for key in (keys[0], keys[1]))
    test_now = WinnerTest([winner], [base])
    [moved] = records.tests(test_now.target)
    assert moved["evaluations"] == [winner.key] and moved["protocol"] == test_now.protocol
    assert moved["params"] == {} and len(records.tests("an old target")) == 1


def test_a_winner_tested_before_an_upgrade_counts_once(session):
    """A set of random images keeps its key, and so does what a sweep was tested on."""
    ledger = Ledger(session.artifacts)
    records, entries = SweepRecords(ledger.objects), ledger.find_many("evaluation", ledger.keys("evaluation")).values()
    of_random = [one for one in entries if ledger.find("set", one.recipe["set"]).recipe["method"] == "random"]
    winner, base = sorted(of_random, key=lambda entry: entry.key)[:2]
    target = WinnerTest([], [recipe_of_kind(base.recipe, EvaluationRecipe)]).target
    test = {
        **{"sweep": "s", "key": "k", "method": "random", "params": {}, "validation_top1_pct": 50.0, "seeds": [0]},
        **{"protocol": "old", "evaluations": [winner.key], "base": [base.key], "recorded_at": "2026-01-01"},
    }
    records.record_test(target, test)
    for _again in range(2):
        keys = upgraded(session).keys
        [now] = records.tests(target)
        assert now["evaluations"] == [keys[winner.key]] and now["protocol"] != "old"


def test_protocols_of_the_users_own(session):
    assert upgrade_presets(session.presets) == ["mine.yaml"] and upgrade_presets(session.presets) == []
    rule = preset_reader(session.presets)("mine")
    protocol = resolve_protocol(rule, factor=1, same_network=True, set_size=10)
    assert protocol.precision == "auto" and protocol.value("temperature") == 4
    assert [step.name for step in protocol.augmentation] == ["patch_shuffle", "resized_crop", "flip"]
    assert (protocol.value("patch_shuffle.grid"), protocol.value("resized_crop.min_area")) == (2, 0.5)
    old = yaml.safe_load((session.presets / "mine.yaml.former").read_text())
    assert old["all"]["mix"] == "none"


@pytest.mark.parametrize(
    ("sections", "same", "other"),
    [
        ("all: {epochs: 2, mix: none}\nsame_network: {flip: false}", [], ["flip"]),
        ("all: {epochs: 2, mix: none}\nother_network: {mix: cutmix}", ["flip"], ["flip", "cutmix"]),
        ("all: {epochs: 2}\nsame_network: {flip: false}", ["cutmix"], ["flip", "cutmix"]),
        ("all: {epochs: 2, loss: mse_gt, temperature: 20.0, gamma: 0.1}", ["flip", "cutmix"], ["flip", "cutmix"]),
    ],
)
def test_sections_of_a_preset_stand_on_what_is_for_all(tmp_path, sections, same, other):
    text = f"name: own\nsource: me\n{sections}\n".replace("all: {", "all: {zeta: 1, batch_size: 5, ")
    (tmp_path / "own.yaml").write_text(text)
    assert upgrade_presets(tmp_path) == ["own.yaml"] and upgrade_presets(tmp_path) == []
    rule = preset_reader(tmp_path)("own")
    for network, steps in ((True, same), (False, other)):
        protocol = resolve_protocol(rule, factor=1, same_network=network, set_size=10)
        assert [step.name for step in protocol.augmentation] == steps
        assert ("mse_gt" in sections) == (protocol.value("loss") == {"mse_gt": {"gamma": 0.1}})
    assert (tmp_path / "own.yaml.former").read_text() == text


@pytest.mark.parametrize("text", ["name: [", "name: own\nsource: me\nall: {factor: 0}\n", "name: own\nsource: 3\n"])
def test_a_preset_that_cannot_be_read_stays_as_it_is(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    assert upgrade_presets(tmp_path) == [] and (tmp_path / "own.yaml").read_text() == text


def test_a_preset_in_another_encoding_does_not_end_an_upgrade(tmp_path):
    (tmp_path / "own.yaml").write_bytes("name: own\nsource: für mich\n".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    assert upgrade_presets(tmp_path) == []


def test_hidden_files_beside_presets_stay_as_they_are(tmp_path):
    text = "name: own\nsource: me\nall: {epochs: 2, zeta: 1, batch_size: 5, mix: none, lr: 1e-3}\n"
    for name in (".own.yaml", "own.yaml"):
        (tmp_path / name).write_text(text)
    assert upgrade_presets(tmp_path) == ["own.yaml"]
    assert (tmp_path / ".own.yaml").read_text() == text
    assert yaml.safe_load((tmp_path / "own.yaml").read_text())["all"]["lr"] == 0.001


def test_a_preset_of_today_is_left_alone(tmp_path):
    text = "name: own\nsource: me\nall: {epochs: 2, augmentation: [flip], precision: bf16}\n"
    (tmp_path / "own.yaml").write_text(text)
    assert upgrade_presets(tmp_path) == [] and (tmp_path / "own.yaml").read_text() == text


def test_keys_of_then_follow_from_the_recipes_of_then(session):
    ledger = Ledger(session.artifacts)
    for kind in ("teacher", "statistics", "set", "evaluation"):
        for key in ledger.keys(kind):
            plain = ledger.find(kind, key).recipe
            assert key_of(plain) == key
            recipe: Recipe = read_recipe(plain)
            assert read_recipe(recipe.model_dump(mode="json")) == recipe and key_of(recipe.model_dump()) == recipe.key
            if isinstance(recipe, TeacherRecipe):
                assert recipe.precision == "auto"
