"""The catalog: everything is resolved once, by the check, and the expansion and the plan use it."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines import Workspace
from pipelines.grid.catalog import Catalog, Frame
from rd3.datasets import dataset_info
from rd3.errors import UnknownName
from rd3.methods import resolve_settings
from rd3.models._base import NETWORKS
from rd3.preset_rules import Case
from rd3.protocol import presets, resolve_protocol
from rd3.values import canonical

GRID = """\
methods: [random, {sre2l: {iterations: 5}}, {cda: {init: rded}}]
datasets: [digits]
ipc: [1, 3]
teacher: resnet18_w16
students: [resnet18_w16, convnet]
protocols: [rd3, {rd3-reduced: {epochs: 7}}]
protocol: {temperature: 4.0}
vary: {zeta: [1.0, 2.0], augmentation: [[flip], []]}
also:
  - {set_seeds: [1], student_seeds: [5]}
  - {ipc: [3], methods: [{sre2l: {iterations: 6}}, {sre2l: {iterations: 5}}]}
"""


@contextmanager
def calls() -> Iterator[Counter[tuple[Any, ...]]]:
    """Counts the calls of both functions by their arguments, from wherever they are called."""
    found: Counter[tuple[Any, ...]] = Counter()

    def count(frame: Any, event: str, _argument: Any) -> None:
        if event != "call" or frame.f_code not in (resolve_settings.__code__, resolve_protocol.__code__):
            return
        given = frame.f_locals
        values = canonical(given["overrides"] or {})
        if frame.f_code is resolve_settings.__code__:
            found["settings", given["method"], given["info"].name, given["ipc"], values] += 1
        else:
            preset = given["preset_or_name"].name
            found["protocol", preset, given["factor"], given["same_network"], given["set_size"], values] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield found
    finally:
        sys.setprofile(before)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("MLFLOW_TRACKING_URI", "RD3_ARTIFACTS", "RD3_DATA"):
        monkeypatch.delenv(name, raising=False)
    return Workspace(home=tmp_path / "home")


def test_a_plan_resolves_everything_once(work: Workspace, tmp_path: Path):
    file = tmp_path / "once.yaml"
    file.write_text(GRID)
    work.grid(file)  # what is fixed for a process, such as the values in which single fields are checked
    with calls() as found:
        plan = work.grid(file).plan()
    assert plan.totals()["run"] > 100
    assert set(found.values()) == {1}, [call for call, count in found.items() if count > 1]
    methods = [("random", {}), ("sre2l", {"iterations": 5}), ("sre2l", {}), ("cda", {"init": "rded"}), ("cda", {})]
    settings = {
        ("settings", method, "digits", ipc, canonical(values))
        for (method, values), ipc in itertools.product([*methods, ("rded", {})], (1, 3))
    }
    settings.add(("settings", "sre2l", "digits", 3, canonical({"iterations": 6})))
    varied = [{}, {"zeta": 1.0}, {"zeta": 2.0}, {"augmentation": ["flip"]}, {"augmentation": []}]
    protocols = {
        ("protocol", preset, 1, same, 10 * ipc, canonical(values))
        for preset, fields in (("rd3", {}), ("rd3-reduced", {"epochs": 7}))
        for same, ipc in itertools.product((True, False), (1, 3))
        for values in [{}, *({"temperature": 4.0} | fields | moved for moved in varied)]
    }
    assert set(found) == settings | protocols


def test_what_is_resolved_is_what_the_functions_return():
    catalog, frame = Catalog(), Frame(factor=1, set_size=30, case=Case(same_network=False))
    info = catalog.dataset("digits")
    assert info == dataset_info("digits") and catalog.dataset("digits") is info
    settings = catalog.settings("sre2l", info, 3, {"iterations": 5})
    assert settings == resolve_settings("sre2l", info, 3, {"iterations": 5})
    assert catalog.settings("sre2l", info, 3, {"iterations": 6}) != settings
    protocol = catalog.evaluation("rd3", frame, {"zeta": 1.5})
    assert protocol == resolve_protocol(
        "rd3", factor=1, same_network=False, set_size=30, overrides={"zeta": 1.5}
    ) and protocol is catalog.evaluation("rd3", frame, {"zeta": 1.5})
    assert catalog.evaluation("rd3", frame._replace(set_size=10), {"zeta": 1.5}).batch_size == 10


def test_students_between_which_no_rule_distinguishes_share_a_protocol():
    catalog = Catalog()
    info = catalog.dataset("cifar10")
    frames = [Frame.of(info, 10, student, "resnet18") for student in ("convnet", "mobilenet_v2", "alexnet")]
    found = {name: [catalog.evaluation(name, frame, {}) for frame in frames] for name in ("rd3", "rded")}
    assert found["rd3"][0] is found["rd3"][1] is found["rd3"][2]
    assert [protocol.lr for protocol in found["rded"]] == [1e-3, 2.5e-3, 1e-4]


def test_an_error_is_raised_each_time():
    catalog = Catalog()
    for _again in range(2):
        with pytest.raises(UnknownName, match="has no setting 'steps'"):
            catalog.settings("sre2l", catalog.dataset("digits"), 1, {"steps": 1})


def test_the_validation_part_is_a_tenth_of_the_smallest_class():
    whole, left = Catalog().dataset("digits"), Catalog().dataset("digits", "fit")
    assert (whole.train_per_class, left.train_per_class) == (140, 126)
    assert whole.train_count - left.train_count == 14 * whole.num_classes


PRESET = "name: mine\nsource: me\nall: {epochs: 400, augmentation: [flip]}\nrules: [{when: {%s}, then: {zeta: 2.0}}]\n"


@pytest.mark.parametrize(
    ("when", "message", "fix"),
    [
        (
            "students: [resnet18, resnet81]",
            "Protocol mine, rules.0.when.students: .*'resnet81'",
            "did you mean 'resnet",
        ),
        ("datasets: [cifr10]", "Protocol mine, rules.0.when.datasets: .*'cifr10'", "did you mean 'cifar10'"),
        ("students: ['timm:resnet_18']", "rules.0.when.students: timm has no network 'resnet_18'", "resnet18"),
    ],
)
def test_unknown_names_in_conditions_of_a_preset_are_refused(tmp_path, when, message, fix):
    (tmp_path / "mine.yaml").write_text(PRESET % when)
    with pytest.raises(UnknownName, match=message) as caught:
        Catalog(presets=tmp_path).protocol("mine")
    assert fix in caught.value.fix


def test_names_of_plugins_and_of_the_users_own_datasets_are_known_in_conditions(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(PRESET % "students: [ours, 'timm:resnet18'], datasets: [birds]")
    with pytest.raises(UnknownName, match="'ours'"):
        Catalog(presets=tmp_path).protocol("mine")
    monkeypatch.setitem(NETWORKS._things, "ours", NETWORKS.get("resnet18"))
    catalog = Catalog(presets=tmp_path)
    with pytest.raises(UnknownName, match="'birds'"):
        catalog.protocol("mine")
    monkeypatch.setattr(catalog, "dataset", lambda name: dataset_info("digits"))
    assert catalog.protocol("mine").rules[0].when.datasets == ("birds",)


def test_every_shipped_preset_names_known_students_and_datasets():
    assert [Catalog().protocol(name).name for name in presets()] == list(presets())
