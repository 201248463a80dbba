"""Expansion against counts by hand, a plain product, and recipes written out one by one."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from pipelines.grid.catalog import Catalog
from pipelines.grid.check import check_document
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.files import load_grid, parse_grid, shipped_grids
from pipelines.grid.located_yaml import GridErrors, read_located
from pipelines.grid.values import Chosen, Grid, Part
from rd3.datasets import dataset_info
from rd3.errors import DataMissing
from rd3.methods import register_method
from rd3.methods._base import METHODS
from rd3.methods.random import Random
from rd3.models._base import NETWORKS, Network
from rd3.protocol import read_preset, resolve_protocol
from rd3.recipe import Data, EvaluationRecipe, SetRecipe, TeacherRecipe, topological
from rd3.store import Entry
from tests.pipelines.fingerprints import Fingerprints
from tracking.report.extra.dd_ranking import dd_ranking
from tracking.report.results import Results


def opened(name: str) -> str:
    """A fingerprint, without data."""
    return f"fingerprint of {name}"


def expanded(text: str, fingerprint_of: Any = opened) -> Expansion:
    return expand(parse_grid(text, "test"), Fingerprints(fingerprint_of))


def of_kind(expansion: Expansion, kind: str) -> list[Any]:
    return [recipe for recipe in expansion.recipes.values() if recipe.kind == kind]


DIGITS = "datasets: [digits]\nteacher: resnet18_w16\n"
SMALL = DIGITS + "methods: [random]\nipc: [1]\nstudent_seeds: [0]\n"


def test_the_demo_counted_by_hand():
    demo = expand(load_grid("demo"), Fingerprints(opened))
    assert len(demo.cells) == 3 * 1 * 2 * 2
    assert [len(of_kind(demo, kind)) for kind in ("teacher", "set", "evaluation")] == [1, 6, 12]


def test_the_cifar10_grid_counted_by_hand():
    grid = expand(load_grid("cifar10"), Fingerprints(opened))
    assert len(grid.cells) == 3 * 2 * 3 + 1 * 2 * 3
    assert [len(of_kind(grid, kind)) for kind in ("teacher", "set", "evaluation")] == [1, 6, 24]
    hard = [cell for cell in grid.cells if cell.labels == "hard"]
    assert {cell.method for cell in hard} == {"random"} and hard[0].overrides == {"labels": "hard"}
    soft_sets = {cell.set for cell in grid.cells if cell.labels == "soft" and cell.method == "random"}
    assert {cell.set for cell in hard} == soft_sets, "hard labels reuse the sets"


def test_the_sensitivity_grid_counted_by_hand():
    grid = expand(load_grid("sensitivity"), Fingerprints(opened))
    assert len(grid.cells) == 2 * 3 * (1 + 5 + 4 + 5)
    # zeta 1, batch 50 and temperature 20 are the base point itself
    assert len(of_kind(grid, "evaluation")) == 2 * 3 * (1 + 4 + 3 + 4)
    assert len(of_kind(grid, "set")) == 2


@pytest.mark.parametrize("name", shipped_grids())
def test_every_shipped_grid_expands(name):
    expansion = expand(load_grid(name), Fingerprints(opened))
    assert expansion.cells and all(cell.evaluation or cell.setting == "CRLD" for cell in expansion.cells)
    order = list(expansion.recipes)
    for key, recipe in expansion.recipes.items():
        assert recipe.key == key
        assert all(order.index(parent) < order.index(key) for _kind, parent in recipe.parents())
        assert expansion.label(key) and expansion.facts(key)["dataset"] == recipe.data.name
    assert [recipe.key for recipe in topological(expansion.recipes.values())] == order


def test_cells_are_the_plain_product():
    text = """\
methods: [random, {sre2l: {iterations: 5}}]
datasets: [digits, cifar10]
ipc: [1, 3]
teacher: {digits: resnet18_w16, cifar10: resnet18}
students: [convnet, resnet18]
protocols: [rd3, rd3-reduced]
set_seeds: [0, 4]
student_seeds: [1, 2]
"""
    expansion = expanded(text)
    product = set(
        itertools.product(
            ["random", "sre2l"],
            ["digits", "cifar10"],
            [1, 3],
            ["convnet", "resnet18"],
            ["rd3", "rd3-reduced"],
            [0, 4],
            [1, 2],
        )
    )
    found = [
        (cell.method, cell.dataset, cell.ipc, cell.student, cell.protocol, cell.set_seed, cell.student_seed)
        for cell in expansion.cells
    ]
    assert len(found) == len(set(found)) == len(product)
    assert set(found) == product
    for cell in expansion.cells:
        made, recipe = expansion.recipes[cell.set], expansion.recipes[cell.evaluation]
        same = cell.student == cell.teacher
        protocol = resolve_protocol(cell.protocol, factor=1, same_network=same, set_size=10 * cell.ipc)
        assert recipe.protocol == protocol
        assert (made.method, made.ipc, made.set_seed, made.data.name) == (
            cell.method,
            cell.ipc,
            cell.set_seed,
            cell.dataset,
        )
        assert (recipe.set, recipe.student, recipe.student_seed) == (made.key, cell.student, cell.student_seed)
        assert [expansion.recipes[key].network for key in recipe.teachers] == [cell.teacher]


def test_a_recipe_written_out_has_the_same_key():
    expansion = expanded(SMALL)
    info = dataset_info("digits")
    data = Data(name="digits", fingerprint=opened("digits"))
    made = SetRecipe(
        method="random",
        version=Random.version,
        settings=Random.Settings().model_dump(mode="json"),
        data=data,
        classes=info.classes,
        resolution=32,
        ipc=1,
        set_seed=0,
    )
    [teacher] = of_kind(expansion, "teacher")
    assert isinstance(teacher, TeacherRecipe) and teacher.data == data
    evaluation = EvaluationRecipe(
        set=made.key,
        teachers=(teacher.key,),
        protocol=resolve_protocol("rd3", factor=1, same_network=True, set_size=10),
        student="resnet18_w16",
        student_seed=0,
        data=data,
        classes=info.classes,
        resolution=32,
        normalisation=info.normalisation,
    )
    [cell] = expansion.cells
    assert (cell.set, cell.evaluation) == (made.key, evaluation.key)


def test_equal_settings_are_one_key():
    # ten classes at IPC 1: batches of 50 and 100 are both capped at 10 images, so zeta alone tells students apart
    text = (
        DIGITS
        + "methods: [random]\nipc: [IPC]\nstudent_seeds: [0]\nvary: {batch_size: [10, 50, 100], zeta: [1.0, 2.0]}\n"
    )
    small, large = expanded(text.replace("IPC", "1")), expanded(text.replace("IPC", "10"))
    assert len(small.cells) == len(large.cells) == 1 + 3 + 2
    assert len(of_kind(small, "evaluation")) == 2
    assert len(of_kind(large, "evaluation")) == 4
    assert {cell.varied["batch_size"] for cell in small.cells if "batch_size" in cell.varied} == {10, 50, 100}


def test_the_protocol_follows_the_student():
    expansion = expanded(SMALL.replace("[1]", "[20]") + "students: [resnet18_w16, convnet]\n")
    found = {
        cell.student: (
            expansion.recipes[cell.evaluation].protocol.zeta,
            expansion.recipes[cell.evaluation].protocol.batch_size,
        )
        for cell in expansion.cells
    }
    assert found == {"resnet18_w16": (1.0, 50), "convnet": (2.0, 100)}


def test_the_seven_students_have_batches_of_50_and_100():
    others = {"resnet50", "resnet101", "mobilenet_v2", "efficientnet_b0", "swin_v2_t", "vit_b_16"}
    for table, of_others in (("table3", 100), ("table14", 100), ("table13", 50)):
        found = expand(load_grid(table), Fingerprints(opened))
        sizes = {(cell.student, found.evaluation_of(cell).protocol.batch_size) for cell in found.cells}
        assert sizes == {("resnet18", 50), *((student, of_others) for student in others)}


@pytest.mark.parametrize("name", [name for name in shipped_grids() if name.endswith("-small")])
def test_a_demonstration_size_has_at_most_20_evaluations_at_a_tenth_of_the_epochs(name):
    found = expand(load_grid(name), Fingerprints(opened))
    evaluations = of_kind(found, "evaluation")
    assert len(evaluations) <= 20
    shares = {run / published for cell in found.cells if cell.evaluation for run, published in [cell.reduced["epochs"]]}
    if name == "dc-bench-small":
        assert max(shares) == 100 / 301 and "a third of the epochs" in load_grid(name).description
    else:
        assert max(shares) <= 0.1


def test_rules_of_presets_get_the_cell():
    text = """\
methods: [random]
datasets: [digits, cifar100]
ipc: [1, 10]
teacher: {digits: resnet18_w16, cifar100: resnet18}
students: [mobilenet_v2, resnet18]
protocols: [minimax-hard, rded, {rded: {epochs: 30}}]
student_seeds: [0]
"""
    expansion = expanded(text)
    found = {}
    for cell in expansion.cells:
        protocol = expansion.recipes[cell.evaluation].protocol
        place = cell.dataset, cell.ipc, cell.student
        found[(*place, cell.protocol, "epochs" in cell.overrides)] = (protocol.epochs, protocol.batch_size, protocol.lr)
        assert cell.reduced == ({"epochs": (30, 300)} if "epochs" in cell.overrides else {})
    batches = {
        ("digits", 1): 10, ("digits", 10): 50, ("cifar100", 1): 20, ("cifar100", 10): 100
    }  # fmt: skip
    epochs = {("digits", 1): 3000, ("digits", 10): 2000, ("cifar100", 1): 2000, ("cifar100", 10): 1300}
    expected = {}
    for (dataset, ipc), student in itertools.product(batches, ["mobilenet_v2", "resnet18"]):
        own = batches[dataset, ipc], 2.5e-3 if student == "mobilenet_v2" else 1e-3
        hard = epochs[dataset, ipc], 10 if (dataset, ipc) == ("digits", 1) else 64, 0.01
        expected |= {
            (dataset, ipc, student, "minimax-hard", False): hard,
            (dataset, ipc, student, "rded", False): (300, *own),
            (dataset, ipc, student, "rded", True): (30, *own),
        }
    assert found == expected


def test_an_incomplete_protocol_is_a_mistake_at_its_place():
    with pytest.raises(GridErrors) as caught:
        expanded(SMALL + "protocols: [cvdd]\n")
    assert str(caught.value).startswith("Grid test has 1 mistake")
    [problem] = caught.value.problems
    assert problem.message.startswith("Protocol cvdd is incomplete, as protocols cannot express logits of several")
    assert problem.line == 6


def test_hard_labels_need_no_teacher():
    expansion = expanded(SMALL + "protocol: {labels: hard}\n")
    assert of_kind(expansion, "teacher") == []
    [cell] = expansion.cells
    evaluation = expansion.recipes[cell.evaluation]
    assert evaluation.teachers == () and evaluation.protocol.loss.name == "ce" and cell.labels == "hard"
    assert evaluation.protocol.zeta == 1.0, "the student still is the network of the grid's teacher"
    assert "teacher" not in expansion.facts(cell.evaluation)


def test_what_the_grid_changes_and_what_it_cuts_is_told():
    text = SMALL.replace("[random]", "[{sre2l: {iterations: 7, batch_classes: 5}}]")
    [cell] = expanded(
        text + "protocol: {temperature: 4.0, flip.probability: 0.5}\nprotocols: [{rd3: {epochs: 10}}]\n"
    ).cells
    assert cell.overrides == {"sre2l.iterations": 7, "sre2l.batch_classes": 5, "temperature": 4.0, "epochs": 10}
    assert cell.reduced["epochs"] == (10, 400)
    assert cell.reduced["iterations"][0] == 7 < cell.reduced["iterations"][1]
    [plain] = expanded(SMALL).cells
    assert plain.overrides == plain.reduced == {}


def test_a_partial_grid_that_repeats_cells_adds_none():
    text = SMALL + "also:\n  - student_seeds: [0, 1]\n"
    assert [cell.student_seed for cell in expanded(text).cells] == [0, 1]


def test_more_images_than_the_class_has_is_unsupported():
    expansion = expanded(SMALL.replace("[1]", "[1, 141]"))
    good, bad = expansion.cells
    assert good.evaluation and not good.reason
    assert bad.set is None and bad.evaluation is None
    assert "140 training images a class" in bad.reason and "141" in bad.reason
    assert all(recipe.ipc == 1 for recipe in of_kind(expansion, "set"))


def test_the_validation_part_is_not_drawn_from():
    text = SMALL.replace("[1]", "[126, 127]") + "test_on: validation\n"
    expansion = expanded(text)
    good, bad = expansion.cells
    assert "126 training images" in bad.reason, "a tenth of the smallest class's 140 images is set apart"
    for recipe in expansion.recipes.values():
        assert recipe.data.split == "fit"
    assert expansion.recipes[good.evaluation].tested_on == "validation"


def test_a_pair_that_a_method_refuses_is_unsupported():
    with Refusal():
        expansion = expanded(SMALL.replace("[random]", "[random, refuses]"))
        assert [cell.reason for cell in expansion.cells] == ["", "needs colour"]
        with pytest.raises(GridErrors, match="no supported cells: needs colour"):
            expanded(SMALL.replace("[random]", "[refuses]"))


def test_generated_sets_have_no_soft_labels_of_their_own():
    text = SMALL + "protocols: [rd3, {rd3: {soft_labels: own}}]\n"
    cells = expanded(text).cells
    assert {cell.reason for cell in cells} == {
        "", "soft_labels 'own' needs an imported set with soft labels of its own",
    }  # fmt: skip
    with pytest.raises(GridErrors, match="no supported cells: soft_labels 'own' needs an imported set"):
        expanded(SMALL + "protocol: {soft_labels: own}\n")


def test_an_unsupported_loss_has_cells_that_say_so():
    for given in ("protocol: {loss: crld, epochs: 9}\n", "protocols: [{rd3: {loss: {crld: {x: 1}}, epochs: 9}}]\n"):
        found = expanded(SMALL + "also:\n  - " + given)
        plain, crld = found.cells
        assert plain.evaluation and crld.evaluation is None and crld.set is None
        assert crld.reason.startswith("loss 'crld' is unsupported: it compares two views of every image")
        assert crld.overrides["loss"] in ("crld", {"crld": {"x": 1}}) and crld.overrides["epochs"] == 9
        with pytest.raises(GridErrors, match="no supported cells: loss 'crld' is unsupported: it compares two views"):
            expanded(SMALL + given)
    with pytest.raises(GridErrors, match="Loss 'crld' is unsupported"):
        expanded(SMALL + "vary: {loss: [kl, crld]}\n")


def test_mistakes_that_only_expansion_finds_have_their_places():
    text = """\
methods:
  - random
  - dwa: {init: f00}
  - edc: {pool: [nobody]}
datasets: [digits]
ipc: [1, 2]
teacher: resnet18_w16
also:
  - methods: [{sre2l: {init: abc}}]
  - protocol: {epochs: 2}
"""
    with pytest.raises(GridErrors) as caught:
        expanded(text)
    found = [(problem.place, problem.line, problem.message) for problem in caught.value.problems]
    assert [(place, line) for place, line, _message in found] == [
        ("methods[1].dwa", 3), ("methods[2].edc", 4), ("also[0].methods[0].sre2l", 9)
    ]  # fmt: skip
    assert [message.partition(",")[0] for _place, _line, message in found] == [
        "There is no start 'f00'.",
        "Dataset digits has no teacher 'nobody'.",
        "There is no start 'abc'.",
    ]
    assert "rded" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("change", "place", "line"),
    [
        (("ipc: [1]", "ipc: [500, 600]"), ["ipc[0]", "ipc[1]"], 4),
        (("student_seeds", "students: [odd]\nstudent_seeds"), ["students[0]"], 5),
    ],
)
def test_a_grid_that_expands_to_nothing_says_where(monkeypatch, change, place, line):
    assert "odd" not in NETWORKS.names()
    odd = Network("odd", "of another size", {64: ""}, lambda classes, side: None)
    monkeypatch.setitem(NETWORKS._things, "odd", odd)
    with pytest.raises(GridErrors, match="The grid has no supported cells: ") as caught:
        expanded(SMALL.replace(*change))
    assert [problem.place for problem in caught.value.problems] == place
    assert {problem.line for problem in caught.value.problems} == {line}


class Refusal:
    """A method that makes nothing, registered for a while."""

    def __enter__(self) -> None:
        from rd3.methods import Support

        @register_method("refuses", version=1)
        class Refuses(Random):
            def supports(self, info: Any, ipc: int) -> Support:
                return Support(False, "needs colour")

    def __exit__(self, *_error: object) -> None:
        del METHODS._things["refuses"]


def test_a_student_without_a_form_at_the_resolution_is_unsupported():
    from rd3.models import NETWORKS, register_network

    register_network("only224", summary="for one test", resolutions={224: ""})(lambda num_classes, resolution: None)
    try:
        expansion = expanded(SMALL + "students: [resnet18_w16, only224]\n")
    finally:
        del NETWORKS._things["only224"]
    assert [bool(cell.evaluation) for cell in expansion.cells] == [True, False]
    assert expansion.cells[1].reason == "only224 is not available at 32 pixels, only at 224"


def test_missing_data_blocks_and_does_not_fail():
    def absent(name: str) -> str:
        if name == "cifar10":
            raise DataMissing("No CIFAR-10 in /data.", "rd3 data fetch cifar10")
        return opened(name)

    text = SMALL.replace("[digits]", "[digits, cifar10]").replace(
        "resnet18_w16", "{digits: resnet18_w16, cifar10: resnet18}"
    )
    expansion = expanded(text, absent)
    blocked = {key for key, recipe in expansion.recipes.items() if recipe.data.name == "cifar10"}
    assert set(expansion.blocked) == blocked and len(blocked) == 3
    assert set(expansion.blocked.values()) == {"No CIFAR-10 in /data. Fix: rd3 data fetch cifar10"}


def test_each_dataset_is_opened_once():
    asked: list[str] = []
    expanded(SMALL + "also: [{ipc: [2]}, {ipc: [3]}]\n", lambda name: asked.append(name) or "f")
    assert asked == ["digits"]


def test_other_data_has_other_keys():
    one, two = expanded(SMALL), expanded(SMALL, lambda name: "other pixels")
    assert not set(one.recipes) & set(two.recipes)


def test_a_varied_setting_of_a_changed_loss_keeps_its_base_point():
    text = SMALL + "protocols: [{rd3: {loss: mse_gt}}]\nvary: {gamma: [0.5]}\n"
    cells = expanded(text).cells
    assert [cell.varied for cell in cells] == [{}, {"gamma": 0.5}]
    assert cells[0].overrides == cells[1].overrides
    assert list(cells[0].overrides) == ["loss"]


def test_varied_values_that_change_nothing_are_said():
    """rd3 has temperature 20, and a set of ten images caps every batch at ten."""
    text = SMALL + "protocols: [rd3]\nvary: {batch_size: [5, 50, 100], temperature: [1, 20.0]}\n"
    names = ("batch_size: 50", "batch_size: 100", "temperature: 20.0")
    assert expanded(text).notes == [f"vary.{name} has no effect: it equals the base value." for name in names]
    assert expanded(SMALL).notes == []


def test_a_table_that_prints_nothing_of_the_grid_is_said_at_full_size():
    text = SMALL + "paper: {'6': loss=KL}\nsmall: {ipc: [2]}\n"
    said = "paper: the paper's Table 6 prints no value for any cell of this grid under 'loss=KL'."
    assert expanded(text).notes == [said]
    small = check_document(read_located(text, "test"), Catalog(), small=True)
    assert small is not None and expand(small, Fingerprints(opened)).notes == []
    printed = text.replace("digits", "imagenet1k").replace("resnet18_w16", "resnet18").replace("[1]", "[10]")
    assert expanded(printed).notes == [said], "Table 6 prints no random images"
    assert expanded(printed.replace("[random]", "[random, edc]")).notes == []


@pytest.mark.parametrize("name", [name for name in shipped_grids() if not name.endswith("-small")])
def test_every_shipped_grid_has_printed_values_where_it_names_a_table(name):
    assert not [note for note in expand(load_grid(name), Fingerprints(opened)).notes if "paper" in note]


def test_a_mistake_that_only_the_expansion_finds_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL.replace("[1]", "[5000]"))
    with pytest.raises(GridErrors, match=rf"Grid {re.escape(str(path))} has 1 mistake(.|\n)*no supported cells"):
        expand(load_grid(path), Fingerprints(opened))


def test_ten_thousand_cells():
    part = Part(
        methods=tuple(Chosen(name="sre2l", values={"iterations": n}) for n in range(1, 6)),
        datasets=("digits", "cifar10"),
        ipc=(1, 10),
        teacher={"digits": "resnet18_w16", "cifar10": "resnet18"},
        students=("convnet",),
        set_seeds=tuple(range(10)),
        student_seeds=tuple(range(50)),
    )
    grid = Grid(name="big", parts=(part,))
    expansion = expand(grid, Fingerprints(opened))
    assert len(expansion.cells) == len(of_kind(expansion, "evaluation")) == 5 * 2 * 2 * 10 * 50
    assert len(of_kind(expansion, "set")) == 5 * 2 * 2 * 10
    assert len(of_kind(expansion, "teacher")) == 2


def test_a_method_without_a_set_seed_has_one_set_for_all_seeds():
    grid = expanded(DIGITS + "methods: [random, herding]\nipc: [1]\nset_seeds: [1, 2]\nstudent_seeds: [0, 1]\n")
    seeds = {
        method: [cell.set_seed for cell in grid.cells if cell.method == method] for method in ("random", "herding")
    }
    assert seeds == {"random": [1, 1, 2, 2], "herding": [0, 0]}
    assert len(of_kind(grid, "set")) == 3
    assert grid.notes == ["Method herding has no set seed: its sets are planned with set seed 0 alone."]


def test_label_teachers_whose_labels_nobody_learns_are_said():
    said = "label_teachers: no student learns labels of other teachers than `teacher`."
    assert expanded(SMALL + "label_teachers: [convnet_w32]\n").notes == []
    assert expanded(SMALL + "label_teachers: [resnet18_w16]\n").notes == [said]
    hard = SMALL + "protocol: {labels: hard}\nlabel_teachers: [convnet_w32]\n"
    assert expanded(hard).notes == [said]
    assert expanded(hard + "also: [{protocol: {labels: soft}}]\n").notes == [], "one part learns them"


def test_the_dd_ranking_grid_has_every_cell_of_its_table():
    grid = expand(load_grid("dd-ranking"), Fingerprints(opened))
    assert len(grid.cells) == 4 * 3 * 4
    assert len(of_kind(grid, "set")) == 2 * 3 + 2
    find = {
        key: Entry(kind=recipe.kind, key=key, recipe=recipe.model_dump(mode="json"), result={})
        for key, recipe in grid.recipes.items()
    }
    for entry in find.values():
        entry.result.update(top1_pct=90.0 if entry.kind == "teacher" else 50.0)
    table = dd_ranking(Results.of(grid.cells, lambda kind, key: find.get(key)))
    assert [row[3] for row in table.texts] == ["random", "rded", "herding", "k_center"]
    assert "missing" not in table.columns and all("missing" not in row for row in table.texts)


def test_a_protocol_without_epochs_for_a_student_is_completed_by_the_grid(tmp_path):
    rule = "rules: [{when: {students: [resnet18_w16]}, then: {epochs: 3}}]"
    (tmp_path / "mine.yaml").write_text(
        f"name: mine\nsource: me\nall: {{augmentation: [flip], zeta: 1, batch_size: 9}}\n{rule}\n"
    )
    catalog = Fingerprints(opened)
    catalog.protocols["mine"] = read_preset(tmp_path / "mine.yaml")
    text = SMALL + "students: [convnet_d1, resnet18_w16]\nprotocols: [{mine: {epochs: 2}}]\n"
    expansion = expand(parse_grid(text, "test", catalog), catalog)
    assert {cell.overrides["epochs"] for cell in expansion.cells} == {2}
    assert [dict(cell.reduced) for cell in expansion.cells] == [{}, {"epochs": (2, 3)}]
