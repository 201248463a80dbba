"""Plans against a small ledger in memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from pipelines.commands.grid import cached_logits_line
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.files import load_grid, parse_grid
from pipelines.grid.plan import Plan, _probe, make_plan
from rd3.datasets import dataset_info
from rd3.errors import DataCorrupt, DataMissing, TrackingError, TrackingUnavailable, Unavailable
from rd3.models import build_network
from rd3.planning.cached_logits import LogitsForecast
from rd3.planning.cost import CPU_THREAD, Rates
from rd3.planning.forecast import work
from rd3.recipe import KINDS, Recipe
from rd3.store import STUDENT, Entry
from tests.pipelines.fingerprints import Fingerprints
from tracking.place import Place
from tracking.runs.reachable import LoginRejected

TEXT = """\
methods: [random, rded]
datasets: [digits]
ipc: [1]
teacher: resnet18_w16
student_seeds: [0, 1]
"""


class Memory:
    """A ledger of entries in memory that counts how it is read."""

    def __init__(self, recipes: Iterable[Recipe] = ()):
        self.entries = {recipe.key: Entry(kind=recipe.kind, key=recipe.key, recipe={}, result={}) for recipe in recipes}
        self.gone: set[str] = set()
        self.altered: set[str] = set()
        self.listed: list[str] = []
        self.verified: list[str] = []

    def keys(self, kind: str) -> set[str]:
        self.listed.append(kind)
        return {key for key, entry in self.entries.items() if entry.kind == kind}

    def find_many(self, kind: str, keys: Iterable[str]) -> dict[str, Entry]:
        return {key: self.entries[key] for key in keys if key in self.entries and self.entries[key].kind == kind}

    def exists(self, entry: Entry) -> bool:
        return entry.key not in self.gone

    def verify(self, entry: Entry) -> None:
        self.verified.append(entry.key)
        if entry.key in self.altered:
            raise DataCorrupt("altered")


@pytest.fixture(scope="module")
def expansion() -> Expansion:
    return expand(parse_grid(TEXT, "small"), Fingerprints())


def weight_bytes() -> int:
    """Of the small ResNet-18 on ten classes at 32 pixels."""
    network = build_network("resnet18_w16", 10, 32, dataset_info("digits").normalisation)
    return 4 * sum(weight.numel() for weight in network.parameters())


def planned(expansion: Expansion, memory: Memory, **options: Any) -> Plan:
    return make_plan(expansion, memory, exists=memory.exists, verify=memory.verify, **options)


def of_kind(expansion: Expansion, kind: str) -> list[Recipe]:
    return [recipe for recipe in expansion.recipes.values() if recipe.kind == kind]


def named(expansion: Expansion, method: str) -> Recipe:
    return next(recipe for recipe in of_kind(expansion, "set") if recipe.method == method)


def test_an_empty_ledger_runs_everything_parents_first(expansion):
    memory = Memory()
    plan = planned(expansion, memory)
    assert plan.keys("run") == list(expansion.recipes)
    assert plan.counts()["teacher"]["run"] == 1 and plan.counts()["set"]["run"] == 2
    assert plan.counts()["evaluation"] == {"reuse": 0, "run": 4, "blocked": 0, "unsupported": 0}
    assert sorted(memory.listed) == sorted(KINDS), "one listing a kind"
    assert all(item.cost_s > 0 for item in plan.items) and plan.flops > 0


def test_a_full_ledger_runs_nothing_and_hashes_nothing(expansion):
    memory = Memory(expansion.recipes.values())
    plan = planned(expansion, memory)
    assert plan.totals() == {"reuse": 7, "run": 0, "blocked": 0, "unsupported": 0}
    assert (plan.process_s, plan.wall_s, plan.flops, memory.verified) == (0, 0, 0, [])


def test_only_what_something_is_made_from_is_hashed(expansion):
    one = of_kind(expansion, "evaluation")[0]
    memory = Memory(recipe for recipe in expansion.recipes.values() if recipe is not one)
    plan = planned(expansion, memory)
    assert plan.keys("run") == [one.key]
    assert set(memory.verified) == {key for _kind, key in one.parents()}


def test_a_teacher_that_nothing_needs_is_left_out(expansion):
    [teacher] = of_kind(expansion, "teacher")
    memory = Memory(recipe for recipe in expansion.recipes.values() if recipe is not teacher)
    plan = planned(expansion, memory)
    assert plan.keys("run") == [] and teacher.key not in {item.key for item in plan.items}
    assert len(plan.items) == 6


def test_by_hand_what_nothing_else_is_made_from_is_asked_for(expansion):
    teacher, *_rest = expansion.recipes.values()
    alone = Expansion({teacher.key: teacher}, infos=expansion.infos)
    assert planned(alone, Memory()).keys("run") == [teacher.key]
    family = Expansion(dict(expansion.recipes), infos=expansion.infos)
    evaluations = {key for key, recipe in family.recipes.items() if recipe.kind == "evaluation"}
    assert {key for key in family.recipes if family.is_result(key)} == evaluations
    there = Memory([one for one in family.recipes.values() if one.kind == "evaluation"])
    assert planned(family, there).keys("run") == []


def test_a_set_is_a_result_of_its_own(expansion):
    made, [teacher] = named(expansion, "rded"), of_kind(expansion, "teacher")
    memory = Memory(recipe for recipe in expansion.recipes.values() if recipe not in (made, teacher))
    assert planned(expansion, memory).keys("run") == [teacher.key, made.key]


def test_an_artifact_that_is_gone_is_made_again(expansion):
    memory = Memory(expansion.recipes.values())
    one = of_kind(expansion, "evaluation")[0]
    memory.gone = {one.key}
    plan = planned(expansion, memory)
    assert plan.keys("run") == [one.key] and plan.stale == [("evaluation", one.key)]


def test_what_is_known_without_its_files_stays_known_while_nothing_needs_it(expansion):
    memory, [teacher] = Memory(expansion.recipes.values()), of_kind(expansion, "teacher")
    memory.gone = {teacher.key}
    assert (planned(expansion, memory).keys("run"), planned(expansion, memory).stale) == ([], [])
    one = of_kind(expansion, "evaluation")[0]
    memory.gone = {teacher.key, one.key}
    assert one.teachers == (teacher.key,)
    assert sorted(planned(expansion, memory).stale) == [("evaluation", one.key), ("teacher", teacher.key)]


def test_an_altered_parent_is_made_again_from_its_own_parents(expansion):
    made, [teacher] = named(expansion, "rded"), of_kind(expansion, "teacher")
    child = next(recipe for recipe in of_kind(expansion, "evaluation") if recipe.set == made.key)
    memory = Memory(recipe for recipe in expansion.recipes.values() if recipe is not child)
    memory.altered = {made.key, teacher.key}
    plan = planned(expansion, memory)
    assert plan.keys("run") == [teacher.key, made.key, child.key]
    assert sorted(plan.stale) == [("set", made.key), ("teacher", teacher.key)]


def test_an_import_that_is_not_there_blocks_what_needs_it(expansion):
    [teacher] = of_kind(expansion, "teacher")
    needs = replace(expansion, imports={teacher.key: "import it: rd3 teacher import"})
    plan = planned(needs, Memory())
    assert plan.keys("run") == [named(expansion, "random").key], "real images need no teacher"
    assert len(plan.keys("blocked")) == 6
    assert {item.reason for item in plan.items if item.status == "blocked"} == {"import it: rd3 teacher import"}
    assert planned(needs, Memory([teacher])).totals()["blocked"] == 0


def test_hard_labels_run_without_the_teacher():
    text = TEXT.replace("[random, rded]", "[random]") + "protocol: {labels: hard}\n"
    hard = expand(parse_grid(text, "hard"), Fingerprints())
    plan = planned(hard, Memory())
    assert plan.totals() == {"reuse": 0, "run": 3, "blocked": 0, "unsupported": 0}


def test_missing_data_blocks_with_its_reason():
    def absent(name: str) -> str:
        raise DataMissing("No digits.", "get some")

    missing = expand(parse_grid(TEXT, "x"), Fingerprints(absent))
    plan = planned(missing, Memory())
    assert plan.totals()["blocked"] == len(missing.recipes) == len(plan.items)
    assert plan.items[0].reason == "No digits. Fix: get some"


def test_unsupported_pairs_are_listed_once():
    text = TEXT.replace("[1]", "[1, 500]").replace("[random, rded]", "[random]")
    grid = expand(parse_grid(text, "x"), Fingerprints())
    plan = planned(grid, Memory())
    [item] = [item for item in plan.items if item.status == "unsupported"]
    assert item.key is None and "500" in item.reason and item.label.startswith("random digits ipc500")


def test_the_wall_time_is_that_of_a_run_and_never_below_work_by_slots_or_the_longest_chain(expansion):
    second_each = Rates("r", fp32=float("inf"), bf16=float("inf"), bytes=float("inf"), step_s=0.0, start_s=1.0)
    one, two, many = (planned(expansion, Memory(), rates=second_each, slots=n) for n in (1, 2, 100))
    assert one.process_s == two.process_s == 7
    # Two devices: teacher and random set; rded set and an evaluation; two evaluations; the last one.
    assert (one.wall_s, two.wall_s, many.wall_s) == (7, 4, 3)
    assert one.chain_s == two.chain_s == many.chain_s == 3


def test_device_hours_and_bytes_by_kind(expansion):
    second_each = Rates("r", fp32=float("inf"), bf16=float("inf"), bytes=float("inf"), step_s=0.0, start_s=1.0)
    plan = planned(expansion, Memory(), rates=second_each)
    parts = plan.by_kind()
    assert {kind: part["process_s"] for kind, part in parts.items()} == {"teacher": 1, "set": 2, "evaluation": 4}
    assert parts["set"]["disk_bytes"] == pytest.approx(2 * (10 + 10) * 3 * 32 * 32, rel=0.15)
    assert parts["teacher"]["disk_bytes"] == pytest.approx(weight_bytes(), rel=0.02)
    assert sum(part["disk_bytes"] for part in parts.values()) == plan.to_json()["cost"]["disk_bytes"]


def test_the_range_is_that_of_the_rates(expansion):
    plan = planned(expansion, Memory(), rates=CPU_THREAD._replace(spread=3.0), priced="so and so")
    assert plan.range_s == pytest.approx((plan.process_s / 3, 3 * plan.process_s))
    assert plan.to_json()["cost"]["priced"] == "so and so"


def test_the_plan_as_json(expansion):
    plain = json.loads(json.dumps(planned(expansion, Memory()).to_json()))
    assert plain["grid"] == "small" and plain["cells"] == 4 and plain["totals"]["run"] == 7
    wanted = {"key", "kind", "label", "status", "reason", "cost_s", "spread", "disk_bytes"}
    assert wanted == set(plain["items"][0])


def test_the_shipped_demo_is_cheap_enough():
    demo = expand(load_grid("demo"), Fingerprints())
    assert planned(demo, Memory(), slots=2).wall_s < 360


def test_planning_loads_neither_torch_nor_mlflow_nor_ray():
    code = """
import sys
from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import expand
from pipelines.grid.files import load_grid
from pipelines.grid.plan import make_plan
class Unread(Catalog):
    def fingerprint(self, name, *, training_only=False): return "f"
class Empty:
    def keys(self, kind): return set()
    def find_many(self, kind, keys): return {}
for name in ("demo", "cifar10", "sensitivity"):
    expansion = expand(load_grid(name), Unread())
    assert make_plan(expansion, Empty(), exists=None, verify=None).items
assert not {"torch", "mlflow", "ray", "boto3"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("raised", "temporary"),
    [
        (TrackingUnavailable("It does not respond."), True),
        (LoginRejected("The login is rejected."), True),  # one with a correct password, as its first use has shown
        (TrackingError("It is another version."), False),
    ],
)
def test_a_plan_calls_temporary_only_what_waiting_helps(monkeypatch, tmp_path, raised: TrackingError, temporary: bool):
    def check(_uri: str, _seconds: float) -> None:
        raise raised

    monkeypatch.setattr("tracking.runs.reachable.check", check)
    with pytest.raises(TrackingError, match=re.escape(raised.message)) as caught:
        _probe(Place("http://127.0.0.1:9", str(tmp_path), tmp_path))
    assert isinstance(caught.value, Unavailable) == temporary


KEPT = "keep_students: true\n"
MEASURED = "robustness: true\n"


def all_but_students(expansion: Expansion, *left_out: str) -> Memory:
    return Memory(recipe for recipe in expansion.recipes.values() if recipe.kind not in left_out)


def test_evaluations_without_their_student_run_again_only_where_a_grid_keeps_students(expansion):
    assert planned(expansion, all_but_students(expansion)).keys("run") == []
    keeping = expand(parse_grid(TEXT + KEPT, "small"), Fingerprints())
    assert list(keeping.recipes) == list(expansion.recipes), "no key differs"
    memory = all_but_students(keeping)
    plan = planned(keeping, memory)
    evaluations = {recipe.key for recipe in of_kind(keeping, "evaluation")}
    assert set(plan.keys("run")) == plan.rerun_for_weights == evaluations and plan.stale == []
    assert {item.reason for item in plan.items if item.status == "run"} == {"run again to keep the student"}
    for key in evaluations:
        memory.entries[key] = memory.entries[key].model_copy(update={"files": {STUDENT: "0" * 64}})
    assert planned(keeping, memory).keys("run") == []


def test_what_is_missing_of_robustness_runs_with_the_evaluations_that_lack_their_student():
    measuring = expand(parse_grid(TEXT + MEASURED, "small"), Fingerprints())
    assert planned(measuring, Memory()).counts()["robustness"]["run"] == 4
    memory = all_but_students(measuring, "robustness")
    first, *others = of_kind(measuring, "evaluation")
    memory.entries[first.key] = memory.entries[first.key].model_copy(update={"files": {STUDENT: "0" * 64}})
    plan = planned(measuring, memory)
    assert plan.rerun_for_weights == {one.key for one in others} and plan.counts()["robustness"]["run"] == 4
    assert planned(measuring, all_but_students(measuring)).keys("run") == [], "what was measured needs no weights"


def test_kept_students_are_part_of_the_disk_space():
    sizes = {}
    for text in (TEXT, TEXT + KEPT):
        expansion = expand(parse_grid(text, "small"), Fingerprints())
        sizes[text] = planned(expansion, Memory()).by_kind()["evaluation"]["disk_bytes"]
    assert sizes[TEXT + KEPT] - sizes[TEXT] == pytest.approx(4 * weight_bytes(), rel=0.02)


def test_a_plan_says_what_cached_logits_save(expansion):
    """The grid varied in temperature: for each set and student seed three evaluations share logits."""
    varied = expand(parse_grid(TEXT + "vary: {temperature: [1.0, 4.0]}\n", "small"), Fingerprints())
    rates = CPU_THREAD._replace(auto="bf16")
    assert planned(varied, Memory(), rates=rates).cached_logits is None
    found = planned(varied, Memory(), rates=rates, cache_logits_bytes=10**9).cached_logits
    evaluations = of_kind(varied, "evaluation")
    assert (found.files, found.evaluations, found.readers, len(evaluations)) == (4, 12, 8, 12)
    epochs = evaluations[0].protocol.epochs
    assert found.images == 8 * epochs * 10
    assert found.disk_bytes == 4 * epochs * 10 * 10 * 2, "(images, classes) of two bytes"
    infos, parent = varied.infos["digits"], varied.recipes.__getitem__
    each = work(evaluations[0], infos, parent)
    without = each._replace(cost=each.cost - each.networks[1][1], networks=each.networks[:1])
    assert found.saved_s == pytest.approx(8 * (rates.seconds(each) - rates.seconds(without)))
    plan = planned(varied, Memory(), rates=rates, cache_logits_bytes=found.disk_bytes // 4 - 1)
    assert (plan.cached_logits.files, plan.cached_logits.too_large) == (0, 12)
    assert "12 evaluations share logits that exceed the budget" in cached_logits_line(plan.cached_logits)
    assert planned(expansion, Memory(), cache_logits_bytes=10**9).cached_logits == LogitsForecast()
    assert "cached_logits" not in planned(expansion, Memory()).to_json()
    assert plan.to_json()["cached_logits"]["too_large"] == 12
    ready = Memory(evaluations[:-1])
    assert planned(varied, ready, cache_logits_bytes=10**9).cached_logits == LogitsForecast(), "only one is left to run"
