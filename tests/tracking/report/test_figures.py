"""Charts: what is drawn is read back from the axes' data or from the SVG's text."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib._pylab_helpers import Gcf

from rd3.errors import BadValue
from tests.tracking.report.test_tables import Results as Grid
from tracking.report import figures
from tracking.report.results import Results
from tracking.report.scores import Score, summarise
from tracking.report.tables import result_table


def _score(method="rded", ipc=10, tops=(40.0, 41.0), **more):
    fields = {
        "dataset": "digits",
        "teacher": "t",
        "student": "resnet18_w16",
        "protocol": "rd3",
        "labels": "soft",
        "varied": {},
        "overrides": {},
        "planned": 2,
        "generation_wall_s": 3.0,
        "generation_process_s": 2.5 * ipc,
        "reduced": {},
        "paper": None,
        "not_comparable": (),
        "unsupported": "",
        "resolved": {"temperature": 20.0, "batch_size": 50, "zeta": 1.0, "loss": "kl"},
    } | more
    if fields["varied"]:
        fields["resolved"] = {**fields["resolved"], **fields["varied"]} | more.get("resolved", {})
    return Score(method=method, ipc=ipc, top1=summarise(tops, [0] * len(tops)) if tops else None, **fields)


def _text(svg: bytes) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def test_accuracy_chart_names_methods_and_ipc_and_prints_the_means():
    table = result_table([_score("random", 1, (21.26,)), _score("random", 10), _score("rded", 10, (44.44, 44.44))])
    words = _text(figures.accuracy_chart(table))
    assert {"random", "rded", "IPC 1", "IPC 10", "21.3", "40.5", "44.4"} <= set(words)


def test_charts_are_well_formed_follow_the_page_and_fetch_nothing():
    table = result_table([_score(), _score("random")])
    svg = figures.accuracy_chart(table, name="one").decode()
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert not re.search(r'(?:href|src)="(?!#)', svg)
    identifiers = re.findall(r'\bid="([^"]+)"', svg)
    assert identifiers and all(identifier.startswith("one-") for identifier in identifiers)
    assert all(target in identifiers for target in re.findall(r'href="#([^"]+)"', svg))
    assert all(target in identifiers for target in re.findall(r"url\(#([^)]+)\)", svg))


def test_the_same_scores_give_the_same_bytes():
    table = result_table([_score(), _score("random")])
    assert figures.accuracy_chart(table) == figures.accuracy_chart(table)


def test_pyplot_is_left_alone():
    figures.cost_chart([_score()])
    assert Gcf.get_all_fig_managers() == []


def test_sensitivity_lines_hold_the_base_point_and_the_moved_ones_in_order():
    given = [
        _score(varied={"temperature": 40.0}, tops=(39.0,)),
        _score(varied={"temperature": 1.0}, tops=(30.0,)),
        _score(),
        _score(varied={"zeta": 2.0}),
        _score(ipc=1),  # a base point that no temperature was tried at
        _score(varied={"temperature": 4.0}, tops=()),  # not done
    ]
    lines = figures.sensitivity_lines(given, "temperature")
    ((label, points),) = lines.items()
    assert label == "rded"
    assert [(value, score.top1.mean) for value, score in points] == [(1.0, 30.0), (20.0, 40.5), (40.0, 39.0)]
    assert [bool(score.varied) for _, score in points] == [True, False, True]


def test_a_batch_that_was_capped_stands_where_it_ran():
    given = [_score(), _score(varied={"batch_size": 400}, resolved={"batch_size": 50})]
    ((_, points),) = figures.sensitivity_lines(given, "batch_size").items()
    assert [value for value, _ in points] == [50]


def test_image_steps_stand_at_those_of_the_result_and_none_means_all():
    """Epochs are rounded, so the student sees another number of images than the grid asks for."""
    given = [
        replace(_score(varied={"image_steps": 1010}), image_steps=1000),
        replace(_score(resolved={"label_epochs": None}), image_steps=400),
        _score(varied={"label_epochs": 3}, resolved={"label_epochs": 3}),
    ]
    ((_, points),) = figures.sensitivity_lines(given, "image_steps").items()
    assert [value for value, _ in points] == [400, 1000]
    ((_, points),) = figures.sensitivity_lines(given, "label_epochs").items()
    assert [value for value, _ in points] == [3, "all"]


def test_a_field_that_is_newer_than_a_result_has_its_neutral_value():
    older = {"loss": {"kl": {}}}
    given = [_score(resolved=older), _score(varied={"ema": 0.99}, resolved=older)]
    ((_, points),) = figures.sensitivity_lines(given, "ema").items()
    assert [value for value, _ in points] == [0.0, 0.99]


@pytest.mark.parametrize(("panels", "labelled"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 3), (7, 3)])
def test_the_lowest_panel_of_each_column_has_the_labels_of_its_axis(panels, labelled):
    svg = figures.panels_chart({f"p{i}": {"line": [(0, 0), (700, 1)]} for i in range(panels)}, x="epochs", y="loss")
    assert _text(svg).count("epochs") == labelled
    assert _text(svg).count("600") == labelled


def test_lines_are_told_apart_by_what_differs():
    given = [
        _score(method, ipc, varied=varied)
        for method in ("random", "rded")
        for ipc in (1, 10)
        for varied in ({}, {"zeta": 2.0})
    ]
    assert set(figures.sensitivity_lines(given, "zeta")) == {
        "random, IPC 1",
        "random, IPC 10",
        "rded, IPC 1",
        "rded, IPC 10",
    }


def test_a_line_without_changes_has_no_trailing_comma():
    results = Grid()
    for overrides in ({}, {"rded.num_crop": 2}):
        results.add("rded", 10, [40.0], overrides=overrides)
        results.add("rded", 10, [41.0], overrides=overrides, varied={"temperature": 4.0})
    assert list(figures.sensitivity_lines(results.scores(), "temperature")) == ["rded", "rded, rded.num_crop=2"]


def _ticks(svg: bytes) -> list[float]:
    """Horizontal places of the ticks of the x axis."""
    axis = re.search(rb'id="s-matplotlib.axis_1".*?id="s-matplotlib.axis_2"', svg, re.DOTALL).group()
    return [float(x) for x in re.findall(rb'<use xlink:href="#s-[^"]*" x="([\d.]+)"', axis)]


def _sensitivity(scores: list[Score], field: str, name: str = "sensitivity") -> bytes:
    return figures.sensitivity_chart(figures.sensitivity_lines(scores, field), field, name=name)


def test_values_over_decades_stand_on_a_logarithmic_axis_others_on_a_plain_one():
    decades = [_score(), *(_score(varied={"temperature": value}) for value in (2.0, 200.0))]
    low, middle, high = _ticks(_sensitivity(decades, "temperature", name="s"))
    assert high - middle == pytest.approx(middle - low, rel=1e-3)
    near = [_score(), *(_score(varied={"zeta": value}) for value in (1.5, 3.0))]
    low, middle, high = _ticks(_sensitivity(near, "zeta", name="s"))
    assert high - middle == pytest.approx(3 * (middle - low), rel=1e-3)


def test_values_that_are_no_numbers_stand_in_plain_steps():
    given = [_score(), _score(varied={"loss": "mse_gt"})]
    words = _text(_sensitivity(given, "loss"))
    assert {"kl", "mse_gt", "base point", "loss"} <= set(words)


def test_a_field_that_nothing_moved_has_no_line():
    assert figures.sensitivity_lines([_score()], "zeta") == {}


def test_cost_needs_a_result():
    with pytest.raises(BadValue, match="both an accuracy and a generation time"):
        figures.cost_chart([_score(tops=())])


def test_text_is_escaped_and_no_mathematics_is_read_into_it():
    table = result_table([_score("a<b>$x$")])
    assert "a<b>$x$" in _text(figures.accuracy_chart(table))


def test_the_papers_methods_look_different_from_each_other():
    styles = figures._styles(["random", "zz", "rded", "sre2l"])
    assert len(set(map(str, styles.values()))) == len(styles)
    assert styles["rded"] == figures._styles(["rded"])["rded"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 2000, [1, 10, 100, 1000]),
        (15, 900, [20, 50, 100, 200, 500]),
        (22, 70, [30, 40, 50, 60, 70]),
        (2.1, 2.6, [2.1, 2.2, 2.3, 2.4, 2.5, 2.6]),
    ],
)
def test_a_logarithmic_axis_has_ticks_within_a_decade(low, high, expected):
    assert figures.log_ticks(low, high) == pytest.approx(expected)


def test_cost_of_a_gpu_and_of_a_processor_are_not_on_one_axis():
    on_gpu = {"generation_gpus": ("NVIDIA H200",), "generation_wall_s": 8.0}
    words = _text(figures.cost_chart([_score(), _score("random", **on_gpu), _score("edc", generation_gpus=("", "X"))]))
    labels = [word for word in words if word.startswith("generation time")]
    assert labels == [
        "generation time of the set, CPU seconds", "generation time of the set, seconds on NVIDIA H200"
    ]  # fmt: skip
    assert "edc" not in words, "sets of two devices have no common time"
    one = _text(figures.cost_chart([_score(**on_gpu), _score("random", **on_gpu)]))
    assert "generation time of the set, seconds on NVIDIA H200" in one and not any("CPU" in word for word in one)


@pytest.mark.parametrize(
    ("made", "seconds", "unit"),
    [
        ({"device": "NVIDIA H200"}, 10.0, "seconds on NVIDIA H200"),
        ({"device": "Some GPU", "device_type": "cuda"}, 10.0, "seconds on Some GPU"),
        ({"device": "x86_64", "device_type": "cpu"}, 9.0, "CPU seconds"),
        ({"device": "cpu"}, 9.0, "CPU seconds"),
        ({}, 9.0, "CPU seconds"),
    ],
)
def test_generation_time_is_that_of_the_device_that_made_the_set(made, seconds, unit):
    grid = Grid()
    grid.add("rded", 10, [40.0])

    def find(kind, key):
        entry = grid.find(kind, key)
        return entry.model_copy(update={"made": made}) if kind == "set" and entry is not None else entry

    [score] = Results.of(grid.cells, find).scores
    assert (score.generation_s, score.generation_unit) == (seconds, unit)


def test_a_set_that_is_not_made_yet_has_no_device():
    grid = Grid()
    for seed, tops in enumerate(([40.0], [None])):
        grid.add("rded", 10, tops, set_seed=seed)
    first, second = (("set", cell.set) for cell in grid.cells)
    made = {"device": "NVIDIA H200", "device_type": "cuda"}
    grid.entries[first] = grid.entries[first].model_copy(update={"made": made})
    del grid.entries[second]
    (score,) = grid.scores()
    assert (score.generation_s, score.generation_unit) == (10.0, "seconds on NVIDIA H200")


def test_cost_within_a_decade_has_labelled_ticks():
    words = _text(figures.cost_chart([_score(generation_process_s=31.0), _score("random", generation_process_s=64.0)]))
    assert {"30", "40", "50", "60"} <= set(words)


def test_a_cost_is_shown_with_and_without_preparation(monkeypatch: pytest.MonkeyPatch):
    """CPU seconds for a processor and wall time for a GPU; nothing where no preparation is known."""
    from matplotlib.axes import Axes

    lines, plot = [], Axes.plot

    def noted(self, x, *args, **more):
        lines.append(x)
        return plot(self, x, *args, **more)

    monkeypatch.setattr(Axes, "plot", noted)
    times = {"preparation_process_s": 20.0, "preparation_wall_s": 1.0}
    on_gpu = _score("random", generation_gpus=("X",), **times)
    words = _text(
        figures.cost_chart([_score(**times), on_gpu, _score("edc"), _score("dwa", preparation_process_s=0.0)])
    )
    assert [line for line in lines if len(line) == 2 and line[0] != line[1]] == [[5.0, 25.0], [2.0, 3.0]]
    assert words.count("(hollow: without preparation)") == 2
    assert "(hollow: without preparation)" not in _text(figures.cost_chart([_score()]))


def test_bars_are_intervals_and_two_seeds_have_none():
    from matplotlib.axes import Axes

    drawn, errorbar = [], Axes.errorbar

    def noted(self, *args, **more):
        drawn.append(more["xerr"])
        return errorbar(self, *args, **more)

    score = _score(tops=(40.0, 41.0, 42.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "errorbar", noted)
        figures.accuracy_chart(result_table([score, _score("random")]))
    assert drawn == [pytest.approx(score.top1.half_95), None]


def test_markers_have_their_result_as_a_title():
    scores = [_score("a<b>&", tops=(40.0, 41.0, 42.5)), _score("random", overrides={"crops": 5})]
    for svg in (figures.accuracy_chart(result_table(scores)), figures.cost_chart(scores)):
        titles = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}title")]
        assert titles == ["a<b>&, IPC 10: 41.2 ± 1.3 [38.0, 44.3] (3)", "random, IPC 10, crops=5: 40.5 (2 seeds)"]


def test_the_pareto_front_has_exactly_the_points_that_no_other_beats():
    rng = random.Random(0)
    points = [(rng.choice([1.0, 2.0, 5.0, 9.0]), float(rng.randrange(20))) for _ in range(40)]
    beaten = {
        one
        for one in points
        for other in points
        if other[0] <= one[0] and other[1] >= one[1] and (other[0] < one[0] or other[1] > one[1])
    }
    assert figures.pareto_front(points) == sorted(set(points) - beaten)
