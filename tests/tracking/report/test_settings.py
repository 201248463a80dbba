"""The table of a grid's named settings, against the paper's own numbers."""

from __future__ import annotations

import pytest

from pipelines.grid.catalog import Catalog
from pipelines.grid.expand import Expansion, expand
from pipelines.grid.files import load_grid, parse_grid
from pipelines.grid.located_yaml import GridErrors
from rd3.store import Entry
from tracking.report.extra.settings import settings
from tracking.report.paper import configurations, configured_value
from tracking.report.results import Results
from tracking.report.tables import result_tables, to_markdown


class Unread(Catalog):
    """Every dataset is at hand."""

    def fingerprint(self, name: str, *, training_only: bool = False) -> str:
        return "0" * 64


def expansion_of(name: str) -> Expansion:
    return expand(load_grid(name), Unread())


def find_in(expansion: Expansion, values: dict[str, float]):
    def find(kind: str, key: str) -> Entry | None:
        recipe = expansion.recipes.get(key)
        if kind != "evaluation" or recipe is None:
            return None
        return Entry(
            kind=kind,
            key=key,
            recipe=recipe.model_dump(mode="json"),
            result={"top1_pct": values.get(key, 10.0)},
            made={},
        )

    return find


def test_table_12_shows_the_ladder_with_the_paper_beside_it():
    expansion = expansion_of("table12")
    table = settings(Results.of(expansion.cells, find_in(expansion, {})))
    assert table is not None
    column = list(table.columns).index("edc")
    ladder = {str(row[3]): str(row[column]) for row in table.rows}
    assert list(ladder) == ["simplified", "+ batch size", "+ augmentation", "+ learning-rate smoothing"]
    assert [text.split("paper ")[1] for text in ladder.values()] == ["31.3", "41.2", "43.1", "46.9"]  # Table 12, EDC


def test_settings_that_are_equal_at_the_small_size_are_run_once_and_said():
    expansion = expansion_of("table12-small")
    table = settings(Results.of(expansion.cells, find_in(expansion, {})))
    assert table is not None
    assert table.note == "+ batch size: the same evaluations as simplified at this size, run once."
    evaluations = [cell.evaluation for cell in expansion.cells]
    assert len(set(evaluations)) == 12 and len(evaluations) == 16


def test_table_18_shows_crld_as_unsupported_with_the_reason_and_the_papers_values():
    expansion = expansion_of("table18")
    cells = [cell for cell in expansion.cells if cell.setting == "CRLD"]
    assert len(cells) == 9 * 3 and not any(cell.evaluation for cell in cells)
    assert {cell.reason for cell in cells} == {
        "loss 'crld' is unsupported: it compares two views of every image, and a protocol trains on one"
    }
    results = Results.of(expansion.cells, find_in(expansion, {}))
    table = settings(results)
    assert table is not None and table.note == f"CRLD: {cells[0].reason}."
    [row] = [row for row in table.rows if row[3] == "CRLD"]
    shown = dict(zip(list(table.columns)[4:], map(str, row[4:]), strict=True))
    printed = {"sre2l": 41.8, "cda": 43.2, "gvbsm": 42.5, "dwa": 43.7, "edc": 45.1, "minimax": 48.8, "d4m": 46.2,
               "rded": 48.2}  # fmt: skip
    assert shown == {"random": "–"} | {method: f"–; paper {mean}" for method, mean in printed.items()}
    [of_crld] = [found for found in result_tables(results.scores) if found.part == "CRLD"]
    text = to_markdown(of_crld)
    assert f"rded at IPC 10: {cells[0].reason}." in text and "| 48.2 |" in text


def test_a_pool_of_label_teachers_is_named_and_all_of_it_labels():
    expansion = expansion_of("table16-small")
    pool = [cell for cell in expansion.cells if cell.setting == "pool of teachers"]
    assert {tuple(cell.overrides["label_teachers"]) for cell in pool} == {("resnet18_w16", "convnet_w32")}
    one = [expansion.evaluation_of(cell) for cell in expansion.cells if cell not in pool]
    assert {len(expansion.evaluation_of(cell).teachers) for cell in pool} == {2}
    assert {len(recipe.teachers) for recipe in one} == {1}
    assert set(one[0].teachers) <= set(expansion.evaluation_of(pool[0]).teachers)


@pytest.mark.parametrize(
    ("table", "config", "place", "mean"),
    [
        ("6", "loss=MSE-GT", ("edc", "imagenet1k", 10, "resnet18", "resnet18"), 47.9),
        ("17", "loss=CE", ("rded", "imagenet1k", 50, "resnet18", "resnet18"), None),
        ("2", "rectified=no", ("sre2l", "imagenet1k", 10, "resnet18", "resnet18"), 21.3),
        ("18", "KD technique=NKD", ("minimax", "imagenet1k", 10, "resnet18", "resnet18"), 47.9),
        ("18", "KD technique=NKD", ("minimax", "imagenet1k", 10, "resnet18", "resnet50"), None),
        ("18", "KD technique=NKD", ("minimax", "digits", 10, "resnet18", "resnet18"), None),
    ],
)
def test_printed_values_by_configuration(table, config, place, mean):
    value = configured_value(*place, {table: config})
    if table == "17":
        assert value is not None and value.table == "17"
    else:
        assert (value and value.mean) == mean
    assert configurations(table, config)


BASE = "methods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nprotocols: [rd3-reduced]\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("paper: {'6': loss=KK}\n", r"paper.6 .line 6.: The paper's Table 6 has no configuration .* 'loss=KK'"),
        ("paper: {'8': loss}\n", "Table 8 prints no accuracies. Fix: use one of: 1, 2, 3, 5, 6, 7, 11, 12, .*, 18, or"),
        ("paper: {'99': loss}\n", "Table 99 prints no accuracies"),
        ("label_teachers: [resnet18_w61]\n", r"label_teachers.0. .line 6."),
        ("small: {ipc: [0]}\n", r"small.ipc.0. .line 6.: Expected an integer of at least 1"),
        ("small: {ipcs: [1]}\n", "has no key 'ipcs' here"),
        ("also:\n  - setting: x\nsmall:\n  also:\n    - ipc: [a]\n", r"small.also.0..ipc.0. .line 10."),
    ],
)
def test_mistakes_are_reported_where_they_are_written(more, said):
    with pytest.raises(GridErrors, match=said):
        parse_grid(BASE + more, "test")


def test_the_demonstration_size_replaces_keys_and_is_headed(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(BASE + "description: Mine.\nalso:\n  - ipc: [2]\nsmall: {ipc: [5], student_seeds: [7]}\n")
    full, small = load_grid(path), load_grid(tmp_path / "mine-small.yaml")
    assert (full.name, small.name) == ("mine", "mine-small")
    assert [part.ipc for part in small.parts] == [(5,), (2,)]
    assert {part.student_seeds for part in small.parts} == {(7,)}
    assert small.description == "Demonstration size: shows the path, not the claim. Mine."
    with pytest.raises(GridErrors, match="has no demonstration size"):
        bare = tmp_path / "bare.yaml"
        bare.write_text(BASE)
        load_grid(tmp_path / "bare-small.yaml")


def test_a_setting_with_two_variants_of_a_protocol_has_a_row_for_each():
    grid = parse_grid(
        "methods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nstudent_seeds: [0]\nsetting: short\n"
        "protocols: [{rd3-reduced: {epochs: 10}}, {rd3-reduced: {epochs: 20}}]",
        "two",
    )
    expansion = expand(grid, Unread())
    values = {cell.evaluation: 10.0 * place for place, cell in enumerate(expansion.cells, 1) if cell.evaluation}
    table = settings(Results.of(expansion.cells, find_in(expansion, values)))
    assert table is not None
    column, accuracy = list(table.columns).index("changed"), list(table.columns).index("random")
    found = {str(row[column]): str(row[accuracy]).split(" ")[0] for row in table.rows}
    assert found == {"epochs=10": "10.0", "epochs=20": "20.0"}
