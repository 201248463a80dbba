"""Teachers that cannot know the classes: chance, permuted classes, wrong constants, values that are not finite."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rd3 import teacher
from rd3.errors import BadValue, ClassOrderError, DataCorrupt, DataMissing
from rd3.known_constants import KNOWN, constants, spelled
from rd3.models import NETWORKS, build_network
from rd3.recipe import Normalisation
from rd3.teacher import fit, plausibility
from rd3.teacher.artifact import NOT_FINITE, Predictions
from rd3.teacher.class_order import outputs_of, read_class_order
from rd3.teacher.plausibility import BetterConstants, best_order, check_not_permuted, reordered, wilson

OWN = Normalisation(mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))


def bring(source, dataset, out, **options):
    """Recipe, figures, and the sentences that were said."""
    said: list[str] = []
    options = {"network": "nearest"} | options
    recipe, figures = teacher.import_weights(source, dataset=dataset, out=out, notice=said.append, **options)
    return recipe, figures, said


@pytest.mark.parametrize(("correct", "count"), [(0, 20), (3, 20), (34, 340), (50, 340), (9999, 10000), (7, 7)])
def test_the_interval_is_wilsons(correct, count):
    """The observed proportion is as many standard errors away from each end as the level asks for."""
    z, (low, high) = NormalDist().inv_cdf(0.995), wilson(correct, count)
    assert 0 <= low <= correct / count <= high <= 1 and low < high
    for end in (low, high):
        assert (correct / count - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / count, abs=1e-12)


def test_the_best_order_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 4
    for _trial in range(5):
        predicted = torch.randint(-1, 4, (60,), generator=generator)
        tested = Predictions("test", predicted, labels)
        best = max(
            sum(int(predicted[row] == order[labels[row]]) for row in range(60))
            for order in itertools.permutations(range(4))
        )
        found = reordered(tested, best_order(tested, 4))
        assert found.correct == best
        assert torch.equal(found.predicted == NOT_FINITE, predicted == NOT_FINITE)


def test_a_good_teacher_is_imported_without_a_word(colours, tmp_path):
    data = colours()
    _recipe, figures, said = bring(data.saved(tmp_path / "w.safetensors"), data, tmp_path / "out")
    assert figures["top1_pct"] == data.top1_pct("test", OWN, OWN) > 95
    assert said == []
    assert "class_order" not in json.loads((tmp_path / "out/manifest.json").read_text())


def permuted(data, path: Path, order: list[int]) -> Path:
    """Weights whose output ``order[c]`` is class c."""
    rows = np.argsort(order)
    return data.saved(path, **{name.replace(".", "_"): value[rows] for name, value in data.weights(OWN).items()})


def test_permuted_classes_are_refused_and_both_fixes_work(colours, tmp_path):
    data, order = colours(), [2, 0, 3, 1]
    path = permuted(data, tmp_path / "w.safetensors", order)
    good = data.top1_pct("test", OWN, OWN)
    with pytest.raises(ClassOrderError, match=rf"look permuted: .* with this order {good:.1f} %.*output 2, not 0") as e:
        bring(path, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "--class-order FILE" in e.value.fix
    assert "--class-order found" in e.value.fix
    (tmp_path / "order.txt").write_text("".join(f"{data.info.class_ids[c]}\n" for c in np.argsort(order)))
    keys = []
    for class_order in ("found", read_class_order(tmp_path / "order.txt")):
        out = tmp_path / str(len(keys))
        recipe, figures, said = bring(path, data, out, class_order=class_order)
        assert (figures["top1_pct"], said) == (good, [])
        assert teacher.TeacherManifest.read(out).class_order == order
        loaded = teacher.load(out, recipe, data)
        assert torch.equal(loaded.network.fc.weight, data.weights(OWN)["fc.weight"])
        keys.append(recipe.key)
    plain = bring(data.saved(tmp_path / "plain.safetensors"), data, tmp_path / "plain")[0]
    assert {*keys} == {plain.key}  # the same teacher as one whose classes were never permuted


def test_two_exchanged_classes_of_many_are_said(colours, tmp_path):
    data = colours(14)
    path = permuted(data, tmp_path / "w.safetensors", [1, 0, *range(2, 14)])
    _recipe, figures, said = bring(path, data, tmp_path / "out")
    assert figures["top1_pct"] == data.top1_pct("test", OWN, OWN, np.argsort([1, 0, *range(2, 14)]))
    assert any("look permuted" in one and "--class-order found" in one for one in said)


def test_chance_is_refused_unless_allowed(colours, tmp_path):
    data = colours()
    path = data.saved(tmp_path / "w.safetensors", fc_weight=torch.zeros(4, 3), fc_bias=torch.zeros(4))
    with pytest.raises(BadValue, match=r"25.0 % of 200 .* class 0 for 100 % .*chance is 25.0 %; likely causes") as e:
        bring(path, data, tmp_path / "out")
    assert "--allow-chance" in e.value.fix
    assert not (tmp_path / "out").exists()
    assert bring(path, data, tmp_path / "out", allow_chance=True)[1]["top1_pct"] == 25


def test_better_constants_are_said_and_never_applied(colours, tmp_path):
    data = colours()
    path = data.saved(tmp_path / "w.safetensors", KNOWN["imagenet"])
    recipe, figures, said = bring(path, data, tmp_path / "out", allow_chance=True)
    assert recipe.normalisation == OWN
    expected = data.top1_pct("test", KNOWN["imagenet"], OWN)
    assert expected < 90
    assert figures["top1_pct"] == pytest.approx(expected, abs=2)  # the test may run in bf16
    [sentence] = said
    best = sentence.rpartition("--normalised ")[2].rstrip(".")
    assert data.top1_pct("validation", KNOWN["imagenet"], constants(best, OWN)) > 95
    assert "imagenet" in sentence
    found, figures, said = bring(path, data, tmp_path / "right", normalisation="imagenet")
    assert (found.normalisation, said) == (KNOWN["imagenet"], [])
    assert figures["top1_pct"] == data.top1_pct("test", KNOWN["imagenet"], KNOWN["imagenet"])


def test_constants_that_were_stated_are_doubted_for_five_points_only():
    for given_pct, stated, doubted in ((86, False, True), (86, True, False), (85, True, True)):
        better = BetterConstants(KNOWN["imagenet"], OWN, 90, given_pct, images=100, alike=("cifar10",))
        assert better.worth_reporting(stated) == doubted
        assert "about as good: cifar10" in better.accuracies


def test_constants_at_chance_are_the_cause_and_the_fix_works(colours, tmp_path):
    data = colours()
    path = data.saved(tmp_path / "w.safetensors", KNOWN["bytes"])
    with pytest.raises(BadValue, match="its constants are the likely cause") as caught:
        bring(path, data, tmp_path / "out")
    name = caught.value.fix.split("--normalised ")[1].split(",")[0]
    assert bring(path, data, tmp_path / "out", normalisation=name)[1]["top1_pct"] > 95


@pytest.mark.parametrize("trained", ["own", "caffe"])
def test_a_teacher_for_bgr_is_said_and_the_fix_works(trained, colours, tmp_path):
    data, own = colours(), OWN if trained == "own" else KNOWN[trained]
    weights = data.weights(own)
    reversed_weight = weights["fc.weight"].flip(1)
    path = data.saved(tmp_path / "w.safetensors", own, fc_weight=reversed_weight)
    said = bring(path, data, tmp_path / "out", allow_chance=True)[2]
    [sentence] = [one for one in said if "BGR" in one]
    assert f"of 80 validation images correctly, with RGB and {spelled(OWN)}" in sentence
    assert ("--normalised caffe" in sentence) == (trained == "caffe")
    state = {"fc.weight": reversed_weight, "fc.bias": weights["fc.bias"]}
    exec(sentence[sentence.index("state[") : sentence.index(", save it")], {"state": state})
    torch.save(state, tmp_path / "fixed.pt")
    options = {"normalisation": "caffe"} if trained == "caffe" else {}
    _recipe, figures, said = bring(tmp_path / "fixed.pt", data, tmp_path / "fixed", **options)
    assert (figures["top1_pct"], said) == (data.top1_pct("test", own, own), [])


@pytest.mark.parametrize(
    ("mean", "std", "prefix"),
    [("norm.mean", "norm.std", "net."), ("mu", "sigma", "")],  # the second as RobustBench's networks
)
def test_constants_in_the_file_are_said(mean, std, prefix, colours, tmp_path):
    data = colours()
    torch.save(
        {mean: torch.full((1, 3, 1, 1), 0.31), std: torch.full((1, 3, 1, 1), 0.2)}
        | {f"{prefix}{name}": value for name, value in data.weights(OWN).items()},
        tmp_path / "w.pt",
    )
    said = bring(tmp_path / "w.pt", data, tmp_path / "out")[2]
    assert said == [
        "The file itself holds the constants 0.31/0.2; 0.3/0.2 are used. "
        "If it was trained with its own, import it with --normalised 0.31/0.2."
    ]
    assert bring(tmp_path / "w.pt", data, tmp_path / "as said", normalisation="0.31/0.2")[2] == []


def test_a_smaller_gain_by_another_order_comes_with_the_order(monkeypatch):
    labels = torch.arange(4).repeat(25)
    predicted = labels.clone()
    predicted[::10] = 1 - predicted[::10].clamp(max=1)
    exchanged = np.array([1, 0, 2, 3])
    monkeypatch.setattr(plausibility, "found_order", lambda *_given: exchanged)
    monkeypatch.setattr(plausibility, "GAIN_PCT", 101.0)
    tested = Predictions("validation", torch.from_numpy(exchanged)[predicted], labels)
    data = SimpleNamespace(info=SimpleNamespace(num_classes=4, name="toy", class_ids=("a", "b", "c", "d")))
    said = check_not_permuted("teacher", tested, None, data, torch.device("cpu"), "take the rows {order}")
    assert said.endswith("Take the rows [1, 0, 2, 3].")
    assert "and 1 more class differs" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value, colours, tmp_path):
    data = colours()
    weight = data.weights(OWN)["fc.weight"]
    weight[1, 2] = value
    path = data.saved(tmp_path / "w.safetensors", fc_weight=weight)
    what = "NaN or infinite" if np.isnan(value) else "infinite"
    with pytest.raises(BadValue, match=rf"1 of 12 values of fc.weight that are {what}\."):
        bring(path, data, tmp_path / "out", allow_chance=True)
    huge = data.saved(tmp_path / "w.safetensors", fc_weight=torch.full((4, 3), 3e38))
    with pytest.raises(BadValue, match=r"logits that are NaN or infinite on \d+ of 200"):
        bring(huge, data, tmp_path / "out", allow_chance=True)
    assert not (tmp_path / "out").exists()


def test_values_that_overflowed_half_precision_are_said_as_such(colours, tmp_path):
    data = colours()
    weights = {name: value.clone() for name, value in data.weights(OWN).items()}
    weights["fc.weight"] *= 1e6
    torch.save({name: value.half() for name, value in weights.items()}, tmp_path / "half.pt")
    overflowed = int(weights["fc.weight"].abs().gt(65520).sum())  # what rounds to infinity in fp16
    with pytest.raises(
        BadValue, match=rf"{overflowed} of 12 values .* infinite, as values beyond 65504 are in fp16"
    ) as e:
        bring(tmp_path / "half.pt", data, tmp_path / "out")
    assert e.value.fix == "save the weights in fp32 from where they were trained"
    torch.save({name: value.double() * 1e50 for name, value in weights.items()}, tmp_path / "double.pt")
    with pytest.raises(BadValue, match=r"fc\.\w+ that are too large for fp32"):
        bring(tmp_path / "double.pt", data, tmp_path / "out")


def test_a_wide_classifier_says_how_its_rows_are_stated(colours, tmp_path):
    data = colours()
    narrow = data.weights(OWN)
    wide = {name.replace(".", "_"): torch.zeros(1000, *value.shape[1:]) for name, value in narrow.items()}
    for name, value in narrow.items():
        wide[name.replace(".", "_")][10:14] = value
    path = data.saved(tmp_path / "w.safetensors", **wide)
    with pytest.raises(ClassOrderError, match="1000 classes, colours has 4") as caught:
        bring(path, data, tmp_path / "out")
    assert "--class-order FILE" in caught.value.fix
    assert "--prune" not in caught.value.fix
    lines = ["-"] * 1000
    lines[10:14] = data.info.class_names
    for short in (data.info.class_names, lines[:14]):  # which rows a shorter list names is not known
        with pytest.raises(ClassOrderError, match=rf"has {len(short)} entries, .* has 1000 rows") as refused:
            bring(path, data, tmp_path / "out", class_order=short)
        assert "1000 in all" in refused.value.fix
    (tmp_path / "rows.txt").write_text("\n".join(lines))
    order = read_class_order(tmp_path / "rows.txt")
    figures = bring(path, data, tmp_path / "out", class_order=order)[1]
    assert figures["top1_pct"] == data.top1_pct("test", OWN, OWN)
    assert teacher.TeacherManifest.read(tmp_path / "out").class_order == [10, 11, 12, 13]


def test_a_classifier_of_imagenet_is_pruned_as_the_error_says(colours, tmp_path):
    data = colours(3, ("n01440764", "n02102040", "n03888257"))  # 0, 217 and 701 of the thousand
    wide = {name: torch.zeros(1000, *value.shape[1:]) for name, value in data.weights(OWN).items()}
    for name, value in data.weights(OWN).items():
        wide[name][[0, 217, 701]] = value
    path = data.saved(tmp_path / "w.safetensors", **{name.replace(".", "_"): value for name, value in wide.items()})
    with pytest.raises(ClassOrderError, match="--prune"):
        bring(path, data, tmp_path / "out")
    assert bring(path, data, tmp_path / "out", prune_to_classes=True)[1]["top1_pct"] == data.top1_pct("test", OWN, OWN)


def test_the_network_that_fits_is_named(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(fit.NETWORKS, "names", lambda: ["convnet_d1", "nearest"])
    data = colours()
    with pytest.raises(BadValue, match="none of the names of convnet_d1") as caught:
        bring(data.saved(tmp_path / "w.safetensors"), data, tmp_path / "out", network="convnet_d1")
    assert caught.value.fix == "name the network that they fit: --network nearest"
    stem = build_network("resnet18_w16", 4, 224, OWN).network.state_dict()
    torch.save(stem, tmp_path / "stem.pt")
    with pytest.raises(BadValue, match=r"conv1.weight is \(16, 3, 7, 7\)") as caught:
        bring(tmp_path / "stem.pt", data, tmp_path / "out", network="resnet18_w16")
    assert "224 pixels" in caught.value.fix


ORDERS = {
    "lines.txt": "colour1\n\ncolour0\ncolour3\ncolour2\n",
    "names.json": '["COLOUR1", "COLOUR0", "COLOUR3", "COLOUR2"]',
    "keras.json": '{"0": ["colour1", "a"], "1": ["colour0", "b"], "2": ["colour3", "c"], "3": ["colour2", "d"]}',
    "to_idx.json": '{"colour0": 1, "colour1": 0, "colour2": 3, "colour3": 2}',
    "labels.json": "[1, 0, 3, 2]",
    "wrapped.json": '{"labels": ["colour1", "colour0", "colour3", "colour2"]}',
}


@pytest.mark.parametrize("name", ORDERS)
def test_class_orders_are_read(name, colours, tmp_path):
    (tmp_path / name).write_text(ORDERS[name])
    assert outputs_of(read_class_order(tmp_path / name), colours().info) == [1, 0, 3, 2]


def test_class_orders_that_leave_a_class_open_are_refused(colours, tmp_path):
    for stated in (["colour0", "colour1", "colour2"], ["colour0", "colour0", "colour1", "colour2", "colour3"]):
        with pytest.raises(ClassOrderError, match=r"'colour[03]' of colours [02] times"):
            outputs_of(stated, colours().info)
    (tmp_path / "bad.json").write_text('{"0": "a", "2": "b"}')
    with pytest.raises(DataCorrupt, match="not a list of classes"):
        read_class_order(tmp_path / "bad.json")
    (tmp_path / "windows.txt").write_bytes("carré\n".encode("cp1252"))
    with pytest.raises(DataCorrupt, match="not UTF-8 text"):
        read_class_order(tmp_path / "windows.txt")
    with pytest.raises(DataMissing, match="There is no file"):
        read_class_order(tmp_path / "none")
    data = colours()
    path = data.saved(tmp_path / "w.safetensors")
    for options in ({"class_order": "nonsense"}, {"class_order": "found", "prune_to_classes": True}):
        with pytest.raises(BadValue, match=r"is a string|both given"):
            bring(path, data, tmp_path / "out", **options)
    with pytest.raises(ClassOrderError, match=r"5 entries, fc.weight in .* has 4 rows"):
        bring(path, data, tmp_path / "out", class_order=[*data.info.class_ids, "more"])


def test_a_registered_network_whose_logits_are_drawn_is_refused(colours, monkeypatch, tmp_path):
    """Dropout that is always on, in a network that a user registered; the import leaves the generators alone."""
    data = colours()
    build = NETWORKS.get("nearest").build

    def noisy(classes, side):
        network = build(classes, side)
        network.register_forward_hook(lambda _one, _inputs, logits: nn.functional.dropout(logits, 0.2, training=True))
        return network

    monkeypatch.setitem(NETWORKS._things, "nearest", replace(NETWORKS.get("nearest"), build=noisy))
    state = torch.get_rng_state()
    with pytest.raises(BadValue, match=r"Network nearest with the weights of .* returns other logits .* always on"):
        teacher.import_weights(
            data.saved(tmp_path / "w.safetensors"), dataset=data, network="nearest", out=tmp_path / "out"
        )
    assert torch.equal(torch.get_rng_state(), state) and not (tmp_path / "out/manifest.json").exists()
