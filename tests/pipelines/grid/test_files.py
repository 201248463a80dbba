"""Grid files: what is read, and that every mistake is reported at once, at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.grid.files import load_grid, parse_grid, shipped_grids
from pipelines.grid.located_yaml import GridErrors, read_located
from pipelines.grid.structure import SENTENCES
from pipelines.sweep import check as sweep_check
from pipelines.sweep.space import RANGE_SENTENCES
from rd3.errors import BadValue, DataCorrupt, DataMissing, UnknownName

BASE = """\
methods: [random]
datasets: [digits]
ipc: [1]
teacher: resnet18_w16
"""


def problems(text: str) -> dict[str, str]:
    """Place to message and fix of every problem that a text has."""
    with pytest.raises(GridErrors) as caught:
        parse_grid(text, "test")
    assert caught.value.exit_code == 2
    found = {problem.place: f"{problem.message} {problem.fix}" for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), caught.value.problems
    return found


def lines(text: str) -> dict[str, int | None]:
    with pytest.raises(GridErrors) as caught:
        parse_grid(text, "test")
    return {problem.place: problem.line for problem in caught.value.problems}


def test_the_defaults_are_those_of_the_benchmark():
    grid = parse_grid(BASE, "mine")
    [part] = grid.parts
    assert (grid.name, grid.timing, grid.test_on) == ("mine", "shared", "test")
    assert [chosen.name for chosen in part.protocols] == ["rd3"]
    assert (part.set_seeds, part.student_seeds, part.students) == ((0,), (0, 1, 2), None)
    assert part.teacher == {"digits": "resnet18_w16"}
    assert part.points() == [{}]


def test_also_overrides_keys_and_keeps_the_others():
    grid = parse_grid(BASE + "also:\n  - protocols: [{rd3: {labels: hard}}]\n    ipc: [2]\n", "test")
    first, second = grid.parts
    assert (first.ipc, second.ipc) == ((1,), (2,))
    assert second.protocols[0].values == {"labels": "hard"}
    assert (second.methods, second.teacher) == (first.methods, first.teacher)


def test_the_key_of_a_grid_ignores_names_and_layout():
    one = parse_grid(BASE, "one")
    assert one.key == parse_grid("# a comment\nname: two\n" + BASE, "x").key
    assert one.key != parse_grid(BASE.replace("ipc: [1]", "ipc: [2]"), "one").key


def test_a_number_may_be_written_as_1e_3():
    grid = parse_grid(BASE + "protocol: {lr: 1e-3, test_epochs: [1, 2]}\n", "test")
    assert grid.parts[0].protocol == {"lr": 0.001, "test_epochs": [1, 2]}
    for text in ("1.5e3", "-2.E2", ".5e1", "+1.0e-3", "3E+2"):
        assert read_located(f"a: {text}").data == {"a": float(text)}
    assert read_located("a: [1e, .e5, e5, 1.2.3e4]").data == {"a": ["1e", ".e5", "e5", "1.2.3e4"]}


def test_text_in_python_stays_text():
    grid = load_grid({"methods": ["random"], "datasets": ["digits"], "ipc": [1], "teacher": "resnet18_w16",
                      "setting": "1e3", "description": "010", "protocol": {"lr": 1e-05}})  # fmt: skip
    assert (grid.parts[0].setting, grid.description, grid.parts[0].protocol) == ("1e3", "010", {"lr": 1e-05})


@pytest.mark.parametrize("sentences", [SENTENCES, sweep_check.SENTENCES, RANGE_SENTENCES])
def test_sentences_have_no_braces_but_for_what_is_found_out(sentences):
    facts = dict.fromkeys(("what", "key", "choices", "nearest", "instead", "owner", "input", "ge"), "x")
    for message, fix in sentences.values():
        message.format(**facts), fix.format(**facts)


def test_a_table_of_the_paper_has_a_configuration():
    for given in ("'6'", "[6]", "{'6': 5}"):
        [(place, said)] = problems(BASE + f"paper: {given}\n").items()
        assert place.startswith("paper") and "e.g. `paper: {'6': loss=KL}`" in said


def test_every_mistake_is_reported_at_once_with_its_place():
    text = """\
methods:
  - random
  - sre2l: {iteratons: 5, iterations: 0}
  - rdd
datasets: [digits, cifar11]
ipc: [1, 0, "2"]
teacher: resnet18_w16
students: [resnet19]
protocol: {temprature: 4.0, epochs: "10"}
protocols: [rd4]
set_seeds: [-1]
student_seeds: [0, 0]
vary: {zeta: 2.0}
timing: alone
set_seed: 3
"""
    found = problems(text)
    assert set(found) == {
        "methods[1].sre2l.iteratons",
        "methods[1].sre2l.iterations",
        "methods[2]",
        "datasets[1]",
        "ipc[1]",
        "ipc[2]",
        "students[0]",
        "protocol.temprature",
        "protocol.epochs",
        "protocols[0]",
        "set_seeds[0]",
        "student_seeds[1]",
        "vary.zeta",
        "timing",
        "set_seed",
    }
    for place, hint in {
        "methods[1].sre2l.iteratons": "'iterations'",
        "methods[2]": "'rded'",
        "datasets[1]": "'cifar10'",
        "students[0]": "'resnet18'",
        "protocol.temprature": "'temperature'",
        "protocols[0]": "'rd3'",
        "set_seed": "'set_seeds'",
    }.items():
        assert "did you mean" in found[place] and hint in found[place], found[place]
    where = lines(text)
    assert (where["methods[1].sre2l.iterations"], where["ipc[1]"], where["set_seed"]) == (3, 6, 15)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("methods", "null", "methods (line 5): Expected a list, got nothing. Fix: write `methods: [...]`"),
        ("methods", "[3]", "methods[0] (line 5): Expected a name, or one name with values, got the number 3."),
        (
            "methods",
            "[{rded: {}, cda: {}}]",
            "methods[0] (line 5): Expected a name, or one name with values, got a map",
        ),
        (
            "methods",
            "[{rded: 3}]",
            "methods[0].rded (line 5): Expected fields with values, got the number 3. "
            "Fix: write `rded: {field: value}`, or only the name",
        ),
        (
            "datasets",
            "digits",
            'datasets (line 5): Expected a list, got the text "digits". Fix: write `datasets: [...]`',
        ),
        ("datasets", "[digits, true]", "datasets[1] (line 5): Expected a name, got the boolean true."),
        ("ipc", "[1.0]", "ipc[0] (line 5): Expected an integer, got the number 1.0."),
        ("teacher", "3", "teacher (line 5): Expected a role, or a role per dataset, got the number 3. Fix: e.g."),
        ("teacher", "{digits: [a]}", "teacher.digits (line 5): Expected a role, got a list."),
        (
            "students",
            "[]",
            "students (line 5): The list is empty, so the grid would be empty. Fix: add at least one item",
        ),
        (
            "student_seeds",
            "[9223372036854775808]",
            "student_seeds[0] (line 5): Expected an integer below 2^63, got 9223",
        ),
        ("protocol", "[a]", "protocol (line 5): Expected fields with values, got a list. Fix: write `field: value`"),
        ("vary", "3", "vary (line 5): Expected fields with values, got the number 3. Fix: write `field: [value, ...]`"),
        ("vary", "{zeta: []}", "vary.zeta (line 5): Expected a list of values, got a list. Fix: write `zeta: [...]`"),
        ("name", "3", "name (line 5): Expected text, got the number 3. Fix: put it in quotes"),
        ("timing", "share", 'timing (line 5): Expected shared or exclusive, got the text "share". Fix: did you mean'),
        ("also", "{ipc: [2]}", "also (line 5): Expected a list of partial grids, got a mapping. Fix: start each with"),
        ("also", "[3]", "also[0] (line 5): Expected keys that change the grid, got the number 3. Fix: e.g. `methods:"),
        ("tecaher", "x", "tecaher (line 5): A grid has no key 'tecaher' here. Fix: did you mean 'teacher'?"),
    ],
)
def test_each_key_has_a_structure(key, value, said):
    """One sentence says where, what was expected and what was got."""
    lines = [line for line in BASE.splitlines() if not line.startswith(f"{key}:")]
    text = "\n".join([*lines, *["# a comment"] * (4 - len(lines)), f"{key}: {value}"])
    with pytest.raises(GridErrors) as caught:
        parse_grid(text, "test")
    [found] = caught.value.problems
    assert str(found).startswith(said)


def test_the_right_items_of_a_list_are_checked_beside_the_wrong_ones():
    found = problems(
        """\
methods: [3, {sre2l: {iterations: 0}}, {rded: 3}]
datasets: [true, digits, cifar11]
ipc: [one, 1]
teacher: {digits: 3, cifar11: x}
students: [null, resnet19]
protocols: [[rd3], rd4]
vary: {zeta: 1, temperature: [-1]}
"""
    )
    assert set(found) == {
        *("methods[0]", "methods[1].sre2l.iterations", "methods[2].rded", "datasets[0]", "datasets[2]", "ipc[0]"),
        *("teacher.digits", "teacher.cifar11", "students[0]", "students[1]", "protocols[0]", "protocols[1]"),
        *("vary.zeta", "vary.temperature[0]"),
    }


def test_the_message_lists_all_problems_with_their_lines():
    with pytest.raises(GridErrors) as caught:
        parse_grid(BASE.replace("random", "randm").replace("[1]", "[0]"), "mine")
    text = str(caught.value)
    assert text.startswith("Grid mine has 2 mistakes:")
    assert text.index("methods[0]") < text.index("ipc[0]"), "in the order of the file"
    assert "methods[0] (line 1): There is no method 'randm'. Fix: did you mean 'random'?" in text
    assert "ipc[0] (line 3): Expected an integer of at least 1, got 0." in text


@pytest.mark.parametrize("name", ["imported", "{imported: {set: b8b08e27710b}}", "b8b08e27710b", "'" + 64 * "4" + "'"])
def test_an_imported_set_is_asked_for_a_name(name):
    with pytest.raises(GridErrors, match="is not a method; imported sets need a name") as caught:
        parse_grid(BASE.replace("[random]", f"[random, {name}]"), "mine")
    assert "methods[1] (line 1)" in str(caught.value) and "`{NAME: {sets: [KEY, ...]}}`" in str(caught.value)


def test_a_protocol_by_name_is_taken_for_one_of_protocols():
    said = problems(BASE + "protocol: rd3\n")["protocol"]
    assert "write `protocols: [rd3]`, or for individual fields `field: value`" in said


@pytest.mark.parametrize("value", ['"20"', "true", "[20]", "{a: 1}", "null"])
def test_nothing_is_coerced(value):
    assert "protocol.temperature" in problems(BASE + f"protocol: {{temperature: {value}}}\n")
    assert "student_seeds[0]" in problems(BASE + f"student_seeds: [{value}]\n")


def test_method_settings_are_as_strict_as_protocol_fields():
    for value in ('"4"', "true", "4.5"):
        text = BASE.replace("[random]", f"[{{sre2l: {{iterations: {value}}}}}]")
        assert set(problems(text)) == {"methods[0].sre2l.iterations"}


def test_contradictory_pairs():
    hard = problems(BASE + "protocol: {labels: hard, loss: kl}\n")
    assert "loss 'kl' learns from soft labels, not from hard ones" in hard["protocol"]
    assert (
        "loss 'ce' learns from hard labels" in problems(BASE + "protocols: [{rd3: {loss: ce}}]\n")["protocols[0].rd3"]
    )
    assert "outside 1..5" in problems(BASE + "protocol: {epochs: 5, test_epochs: [9]}\n")["protocol"]
    assert "'protocol'" in problems(BASE + "protocol: {zeta: 2.0}\nvary: {zeta: [1.0, 2.0]}\n")["vary.zeta"]
    twice = problems(BASE + "protocol: {zeta: 2.0}\nprotocols: [{rd3: {zeta: 1.0}}]\n")
    assert "'protocol'" in twice["protocols[0].rd3.zeta"]
    moved = problems(BASE + "protocols: [{rd3: {zeta: 1.0}}]\nvary: {zeta: [1.0, 2.0]}\n")
    assert "'vary'" in moved["protocols[0].rd3.zeta"]
    assert "no loss 'kk'" in problems(BASE + "vary: {loss: [kl, kk]}\n")["vary.loss[1]"]


def test_values_that_do_not_fit_a_dataset():
    text = BASE.replace("[digits]", "[cifar100, digits]") + "protocols: [{rd3: {soft_labels: stored}}]\n"
    found = problems(text + "vary: {label_top_k: [9, 10], test_resize: [0, 31, 32]}\n")
    assert set(found) == {"vary.label_top_k[1]", "vary.test_resize[1]"}
    assert "label_top_k is 10, digits has 10 classes. leave it out" in found["vary.label_top_k[1]"]
    assert "cropped to 32 pixels. use at least 32, or 0" in found["vary.test_resize[1]"]
    assert lines(BASE + "student_seeds: [0]\nprotocol: {test_resize: 16}\n") == {"protocol": 6}
    assert parse_grid(BASE.replace("digits", "cifar100") + "protocol: {soft_labels: once, label_top_k: 10}\n", "test")


def test_contradictions_are_looked_for_among_the_fields_that_are_right():
    fields = "temperatur: 4, labels: hard, loss: kl, epochs: 0, test_epochs: [900]"
    found = problems(BASE + f"protocols: [{{rd3: {{{fields}}}}}]\n")
    assert set(found) == {"protocols[0].rd3.temperatur", "protocols[0].rd3.epochs", "protocols[0].rd3"}
    assert (
        "learns from soft labels, not from hard ones; test_epochs [900] are outside 1..400" in found["protocols[0].rd3"]
    )
    found = problems(BASE + "protocol: {lr: -1}\nvary: {loss: [kk, kl], test_epochs: [[1], [401]]}\n")
    assert set(found) == {"protocol.lr", "vary.loss[0]", "vary.test_epochs[1]"}
    with pytest.raises(GridErrors) as caught:
        parse_grid(BASE + "protocol: {loss: kk, test_epochs: [401]}\n", "test")
    unknown, late = (problem.message for problem in caught.value.problems)
    assert ("outside 1..400" in late, unknown) == (True, "There is no loss 'kk'.")
    assert "'flop'" in problems(BASE + "vary: {augmentation: [[flip], [flop]]}\n")["vary.augmentation[1]"]


def test_a_start_that_can_be_none_is_found_in_the_file():
    text = """\
methods:
  - sre2l: {init: randm, iterations: 0}
  - sre2l: {init: dwa}
  - dwa: {init: 3fa9c1}
  - cda: {init: rded}
  - cda: {init: noise}
datasets: [digits]
ipc: [0, 2]
teacher: resnet18_w16
"""
    found = problems(text)
    assert set(found) == {"methods[0].sre2l.iterations", "methods[0].sre2l", "methods[1].sre2l", "ipc[0]"}
    assert found["methods[0].sre2l"] == "There is no start 'randm'. did you mean 'random'?"
    assert "cannot start from method dwa, which needs an initial set itself" in found["methods[1].sre2l"]


def test_varied_values_are_checked_one_by_one():
    found = problems(BASE + "vary: {temperature: [1.0, -1.0, hot], tempo: [1]}\n")
    assert set(found) == {"vary.temperature[1]", "vary.temperature[2]", "vary.tempo"}


def test_repeated_values():
    assert "ipc[0]" in problems(BASE.replace("[1]", "[1, 1]"))["ipc[1]"]
    assert set(problems(BASE.replace("[random]", "[random, random]"))) == {"methods[1]"}
    assert set(problems(BASE + "vary: {zeta: [1, 1.0]}\n")) == {"vary.zeta[1]"}
    assert "Duplicate" in problems(BASE + "ipc: [2]\n")["ipc"]


@pytest.mark.parametrize("key", ["methods", "datasets", "ipc", "set_seeds", "student_seeds", "students", "protocols"])
def test_an_empty_list_is_a_grid_that_expands_to_nothing(key):
    text = "\n".join(line for line in BASE.splitlines() if not line.startswith(key)) + f"\n{key}: []\n"
    assert "would be empty" in problems(text)[key]


def test_missing_keys_are_named():
    with pytest.raises(GridErrors) as caught:
        parse_grid("ipc: [1]\n", "test")
    said = " ".join(problem.message for problem in caught.value.problems)
    assert all(f"'{key}'" in said for key in ("methods", "datasets", "teacher"))


def test_teachers_by_dataset():
    text = BASE.replace("[digits]", "[digits, cifar10]").replace("resnet18_w16", "{digits: resnet18_w16}")
    assert "cifar10 has no teacher" in problems(text)["teacher"]
    good = text.replace("16}", "16, cifar10: resnet18}")
    assert parse_grid(good, "test").parts[0].teacher == {"digits": "resnet18_w16", "cifar10": "resnet18"}
    assert "did you mean 'digits'" in problems(good.replace("{digits", "{digts"))["teacher.digts"]
    assert "did you mean" in problems(BASE.replace("resnet18_w16", "resnet18_w17"))["teacher"]


def test_mistakes_of_a_partial_grid_have_their_own_place():
    found = problems(BASE + "also:\n  - {ipc: [0]}\n  - {name: x}\n  - {}\n")
    assert set(found) == {"also[0].ipc[0]", "also[1].name", "also[2]"}


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("methods: [random\nipc: [1]\n", "Invalid YAML", 2),
        ("methods:\n\t- random\n", "Invalid YAML", 2),
        ("- random\n", "must be a mapping, got a list", 1),
        ("", "empty", None),
        ("x: !!python/object:os.system 1\n", "Invalid YAML", 1),
        ("ipc: &a [1]\nset_seeds: *a\n", "are not supported", 2),
        ("? [a, b]\n: 1\n", "A key in brackets or braces is not a string", 1),
        (BASE + "setting: {{ name }}\n", "A key in brackets or braces is not a string", 5),
        (BASE + 'name: "\\ud83d\\ude00"\n', "contains half of a character", 5),
        (BASE + '"\\ud83d": 1\n', "contains half of a character", 1),
        (BASE + "name: !!binary aGk=\n", "Cannot read the value 'aGk='", 5),
        (BASE + "protocol: {epochs: !!timestamp 2026-01-01}\n", "Cannot read the value '2026-01-01'", 5),
        ("0b_: 1\n", "is not a string", 1),
        (BASE + "set_seeds: [0b_]\n", "Cannot read the value '0b_'", 5),
        (BASE + "set_seeds: [" + "1" * 5000 + "]\n", "Cannot read the value '1111", 5),
        (BASE + "set_seeds: [0" + "7" * 400 + "]\n", "below 2^63", 5),
        (BASE + "protocol: {zeta: .inf}\n", "not a finite number", 5),
        (BASE + "name: a/b\n", "Invalid name 'a/b'", 5),
        (BASE + "small: {small: {ipc: [2]}}\n", "has no demonstration size", 5),
        (BASE + "methods: x\n", "Expected a list", 5),
        ("\x00", "Invalid YAML", None),
        ("[" * 20_000, "nested too deeply", None),
        (BASE + "also: " + "{a: " * 20_000, "nested too deeply", None),
    ],
)
def test_texts_that_are_no_grid(text, said, line):
    with pytest.raises(GridErrors) as caught:
        parse_grid(text, "test")
    [problem] = [problem for problem in caught.value.problems if said in problem.message]
    assert problem.line == line, problem


def test_a_mapping_may_hold_one_list_twice_and_plain_values_alone():
    seeds = [0, 1]
    given = {"methods": ["random"], "datasets": ["digits"], "ipc": (1,), "teacher": "resnet18_w16"}
    [part] = load_grid(given | {"set_seeds": seeds, "student_seeds": seeds}).parts
    assert part.set_seeds == part.student_seeds == (0, 1)
    with pytest.raises(BadValue, match=r"a value of type range, 'range\(0, 2\)'"):
        load_grid(given | {"set_seeds": range(2)})


def test_files_and_names(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(BASE)
    assert load_grid(path).name == "own"
    assert load_grid(str(path)).text == BASE
    with pytest.raises(DataMissing, match="no grid file"):
        load_grid(tmp_path / "other.yaml")
    with pytest.raises(UnknownName, match="did you mean 'demo'"):
        load_grid("dmeo")
    with pytest.raises(UnknownName, match="There is no grid 'methods"):  # as from rd3 run "$(cat own.yaml)"
        load_grid(BASE * 9)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataCorrupt, match="not UTF-8 text"):
        load_grid(path)


def test_every_shipped_grid_loads_and_says_what_it_is():
    assert {"demo", "cifar10", "sensitivity"} <= set(shipped_grids())
    for name in shipped_grids():
        assert load_grid(name).name == name
        assert load_grid(name).description.endswith(".")


def test_figures_of_what_a_table_runs_are_its_grid_in_both_sizes():
    for figure, grid in (("figure1", "table2"), ("figure5", "table4"), ("figure6", "figure4")):
        assert load_grid(figure) == load_grid(grid) and load_grid(f"{figure}-small") == load_grid(f"{grid}-small")
        assert figure[-1] in load_grid(grid).description and "Figure" in load_grid(grid).description
        assert figure not in shipped_grids()


TWO = BASE.replace("[random]", "[random, rded]")
CLAIM = TWO + "claim: {text: RDED beats random images., test: better, better: [rded], than: [random]}\n"


def test_a_claim_is_read_and_changes_no_key():
    found = parse_grid(CLAIM, "grid")
    assert found.claim is not None and found.claim.better == ("rded",) and found.claim.than == ("random",)
    assert found.key == parse_grid(TWO, "grid").key


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ("test: better", "test: beter", "Expected better or same ranking or evaluation", "did you mean 'better'"),
        ("text: RDED beats random images.", "text: 3", "Expected text", "quotes"),
        ("text: RDED beats random images., ", "", "The key 'text' is missing", "text"),
        ("better: [rded]", "beter: [rded]", "A claim has no key 'beter'", "did you mean 'better'"),
        ("better: [rded]", "better: []", "The list is empty.", "name at least one method"),
        ("better: [rded]", "better: [rdde]", "no method 'rdde' to claim this of", "did you mean 'rded'"),
        ("better: [rded], ", "", "needs methods in 'better'", "compares"),
        ("than: [random]", "than: [random, rded]", "'rded' is compared with itself", "one side"),
        ("test: better", "test: evaluation", "takes no methods in 'better'", "compares"),
        ("{text: RDED beats random images., test: better, better: [rded], than: [random]}", "yes it does",
         "Expected a claim", "claim: {text"),
    ],
)  # fmt: skip
def test_mistakes_in_a_claim(old, new, message, fix):
    with pytest.raises(GridErrors) as caught:
        parse_grid(CLAIM.replace(old, new), "grid")
    assert message in str(caught.value) and fix in str(caught.value)
    assert all(problem.line for problem in caught.value.problems)


def test_a_demonstration_size_may_lack_methods_of_the_claim():
    text = CLAIM.replace("than: [random]", "than: [random, edc]").replace("[random, rded]", "[random, rded, edc]")
    assert parse_grid(text + "small: {methods: [random, rded]}\n", "grid").claim is not None
    with pytest.raises(GridErrors, match="no method 'edc' to claim"):
        parse_grid(CLAIM.replace("than: [random]", "than: [random, edc]"), "grid")
    with pytest.raises(GridErrors, match="no method 'rded' to claim"):
        parse_grid(text + "small: {methods: [random]}\n", "grid")


def test_robustness_is_all_measures_or_those_that_are_named():
    assert parse_grid(BASE + "robustness: false\n", "test").robustness == ()
    everything = parse_grid(BASE + "robustness: true\n", "test").robustness
    assert everything[0] == "calibration" and len(everything) == 10 and "gaussian_blur" not in everything
    assert parse_grid(BASE + "robustness: [calibration]\n", "test").robustness == ("calibration",)
    named = parse_grid(BASE + "robustness: [gaussian_blur, contrast]\n", "test").robustness
    assert named == ("calibration", "contrast", "gaussian_blur"), "in one order, so that keys do not depend on it"


def test_students_that_are_kept_are_part_of_the_grids_key_only_where_they_are():
    plain = parse_grid(BASE, "test")
    assert parse_grid(BASE + "keep_students: false\nrobustness: false\n", "test").key == plain.key
    assert (
        len({plain.key, *(parse_grid(BASE + f"{key}: true\n", "test").key for key in ("keep_students", "robustness"))})
        == 3
    )


def test_mistakes_in_the_keys_of_students():
    found = problems(BASE + "keep_students: 1\nrobustness: [frost, contrasts, contrast, contrast, 3]\n")
    assert "Expected true or false, got the number 1." in found["keep_students"]
    assert "frost is not computed: it needs photographs of frost" in found["robustness[0]"]
    assert "There is no corruption 'contrasts'" in found["robustness[1]"] and "contrast" in found["robustness[1]"]
    assert "Duplicate of robustness[2]" in found["robustness[3]"]
    assert "Expected a name, got the number 3." in found["robustness[4]"]
    assert "true, false or a list" in problems(BASE + "robustness: all\n")["robustness"]
    assert "has no key 'robustness' here" in problems(BASE + "also: [{robustness: true}]\n")["also[0].robustness"]


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("ipc: [010]", "010 is 8 in YAML, which reads it in base 8. Fix: write 10 or 8, or put it in quotes"),
        ("ipc: [00]", "00 is 0 in YAML, which reads it in base 8. Fix: write 0, or put it in quotes"),
        ("ipc: [01]", "01 is 1 in YAML, which reads it in base 8. Fix: write 1, or put it in quotes"),
        ("ipc: [1:30]", "1:30 is 90 in YAML, which reads it in base 60. Fix: write 90, or put it in quotes"),
        ("ipc: [.nan]", ".nan is not a finite number. Fix: write a number, or put it in quotes"),
        (
            "ipc: [1]\nprotocol: {lr: 1,5e-3}",
            "1,5e-3 is not one number in YAML, where a comma ends the entry. Fix: write 1.5e-3",
        ),
        ("ipc: [1]\nprotocol: {epochs: 2, zeta: 0,5, lr: 1}", "a comma ends the entry. Fix: write 0.5"),
        ("ipc: [1]\nprotocol: {epochs: 1,000}", "a comma ends the entry. Fix: write 1.000, or 1000 if it is that"),
        ("ipc:[1]", "could not find expected ':'. Fix: write `key: value`, with a space after the colon"),
        ("ipc:\n\t- 1", "Fix: indent with spaces"),
        ("<<: {ipc: [1]}", "Key '<<' is not a string. Fix: write the values in full, or use 'also'"),
    ],
)
def test_traps_of_yaml(new: str, said: str):
    text = "name: x\nmethods: [random]\ndatasets: [digits]\nipc: [1]\nteacher: resnet18_w16\nstudent_seeds: [0]\n"
    assert parse_grid(text, "x").parts[0].ipc == (1,)
    with pytest.raises(GridErrors) as caught:
        parse_grid(text.replace("ipc: [1]", new), "x")
    first = caught.value.problems[0]
    assert str(first).endswith(said)
    assert first.line == (5 if "\n" in new else 1 if "<<" in new else 4)
    assert len(caught.value.problems) == (2 if "<<" in new else 1), "ipc is missing then"


def test_a_decimal_comma_in_a_value_of_its_own():
    found = problems(BASE + "protocol:\n  lr: 1,5e-3\n")["protocol.lr"]
    assert found.endswith('got the text "1,5e-3". write 1.5e-3')


def test_a_file_is_called_by_its_path_and_a_grid_by_its_name(tmp_path):
    path = tmp_path / "drafts [1]" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("name: other\n" + BASE.replace("random", "randm"))
    with pytest.raises(GridErrors) as caught:
        load_grid(path)
    assert str(caught.value).startswith(f"Grid {path} has 1 mistake:")
