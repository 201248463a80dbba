"""``rd3 protocol``: what a protocol is, and what distinguishes two of them, by student."""

from __future__ import annotations

import json


def differing(rd3, *words: str) -> dict[tuple[str, str], tuple[str, str]]:
    code, out, _err = rd3("protocol", "diff", *words, "--json")
    assert code == 0
    first, second = words[:2]
    return {(row["student"].split()[0], row["value"]): (row[first], row[second]) for row in json.loads(out)}


def test_it_lists_values_and_settings_that_differ_by_student(rd3, home):
    found = differing(rd3, "rd3", "pca-soft")
    assert found["same", "epochs"] == ("400", "300")
    assert found["same", "batch_size"] == ("50", "128") and found["another", "batch_size"] == ("100", "128")
    assert ("same", "zeta") not in found and found["another", "zeta"] == ("2.0", "1.0")
    assert found["same", "augmentation"][0].startswith("patch_shuffle(grid=2) + resized_crop(")
    assert found["same", "resized_crop.min_area"] == ("0.5", "0.08")
    assert ("same", "patch_shuffle.grid") not in found, "the list of augmentations says it"


def test_losses_with_other_names_are_one_difference(rd3, home):
    found = differing(rd3, "pca-soft", "pca-hard")
    assert {value for _student, value in found} == {"labels", "loss", "augmentation"}
    assert found["same", "loss"] == ("kl(temperature=20.0, scale_t2=False)", "ce(hard_mix=weighted)")


def test_settings_of_different_losses_are_not_compared(rd3, home):
    """Both have a temperature, of another meaning."""
    (home / "presets").mkdir(parents=True)
    text = "name: mine\nsource: me\nall: {epochs: 400, zeta: 1.0, batch_size: 50, loss: dkd, augmentation: [flip]}\n"
    (home / "presets" / "mine.yaml").write_text(text)
    found = differing(rd3, "rd3", "mine")
    assert found["same", "loss"][1].startswith("dkd(") and ("same", "temperature") not in found


def test_rules_are_resolved_for_a_dataset_an_ipc_and_a_student(rd3, home):
    found = differing(rd3, "rded", "rd3", "--ipc", "50")
    assert found["same", "batch_size"] == ("200", "50") and ("same", "lr") not in found
    found = differing(rd3, "rded", "rd3", "--dataset", "cifar100", "--student", "convnet")
    assert found["same", "batch_size"] == ("25", "50") and found["same", "lr"] == ("0.002", "0.001")
    assert not {("another", "batch_size"), ("another", "lr")} & found.keys()
    code, _out, err = rd3("protocol", "diff", "rded", "rd3", "--student", "resnet")
    assert (code, "did you mean 'resnet" in err) == (2, True)


def test_incomplete_protocols_are_compared_with_what_they_lack(rd3, home):
    found = differing(rd3, "rd3", "cvdd")
    assert found["same", "epochs"] == ("400", "300") and found["same", "batch_size"] == ("50", "16")
    nothing, lacking = found["every", "missing"]
    assert nothing == "nothing" and lacking.startswith("logits of several teachers weighted by the softmax")
    found = differing(rd3, "dc-bench", "dc-bench-augmented")
    assert found["another", "epochs"] == ("301", "1001") and found["another", "drop_at"] == ("0.504", "0.501")
    assert found["every", "missing"][1].startswith("augmentations with one draw for all images of a batch")


def test_equal_protocols_and_unknown_names_are_said(rd3, home):
    code, out, _err = rd3("protocol", "diff", "cda", "dwa")
    assert (code, out) == (0, "cda and dwa are equal on every dataset for student resnet18 at IPC 10\n")
    code, out, _err = rd3("protocol", "diff", "sre2l-cifar", "dwa-cifar")
    assert (code, "are equal on every dataset" in out) == (0, True)
    code, out, _err = rd3("protocol", "diff", "cda", "dwa", "--dataset", "cifar10", "--ipc", "1")
    assert (code, out) == (0, "cda and dwa are equal on cifar10 for student resnet18 at IPC 1\n")
    code, _out, err = rd3("protocol", "diff", "rd3", "pca-sof")
    assert (code, "did you mean 'pca-soft'" in err) == (2, True)


def test_protocols_that_are_equal_on_one_dataset_alone_are_not_called_equal(rd3, home):
    (home / "presets").mkdir(parents=True)
    text = "source: me\nall: {epochs: 300, batch_size: 128, zeta: 1.0, augmentation: [flip]}\n"
    rule = "rules: [{when: {datasets: [cifar100, digits]}, then: {lr: 0.1}}]\n"
    for name, more in (("plain", ""), ("ruled", rule)):
        (home / "presets" / f"{name}.yaml").write_text(f"name: {name}\n{text}{more}")
    _code, out, _err = rd3("protocol", "diff", "plain", "ruled")
    said = "plain and ruled are equal on imagenet1k for student resnet18 at IPC 10, and differ on "
    assert out.startswith(said) and {"cifar100", "digits"} == set(out.removeprefix(said).partition(":")[0].split(", "))
    assert differing(rd3, "plain", "ruled", "--dataset", "digits") == {
        (student, "lr"): ("0.001", "0.1") for student in ("same", "another")
    }


def test_a_dataset_for_which_a_protocol_lacks_values_is_no_difference(rd3, home):
    (home / "presets").mkdir(parents=True)
    text = "source: me\nall: {epochs: 300, zeta: 1.0, augmentation: [flip]}\n"
    rule = "rules: [{when: {datasets: [imagenet1k]}, then: {batch_size: 100}}]\n"
    for name in ("one", "other"):
        (home / "presets" / f"{name}.yaml").write_text(f"name: {name}\n{text}{rule}")
    code, out, _err = rd3("protocol", "diff", "one", "other")
    assert (code, out) == (0, "one and other are equal on every dataset for student resnet18 at IPC 10\n")


def test_a_protocol_is_shown_with_what_it_does_otherwise_and_what_it_lacks(rd3, home):
    code, out, _err = rd3("protocol", "show", "dc-bench", "--dataset", "cifar10")
    assert code == 0 and "deviates: the momentum goes on where the rate drops" in out and "missing:" not in out
    code, out, _err = rd3("protocol", "show", "cvdd", "--dataset", "cifar10", "--student", "resnet101", "--json")
    rows = json.loads(out)
    assert [row["value"] for row in rows[:5]] == ["source", "deviates", "deviates", "missing", "missing"]
    assert {row["value"]: row["another network"] for row in rows}["lr"] == "0.0005"
    code, _out, err = rd3("protocol", "show", "cvd")
    assert (code, "did you mean 'cvdd'" in err) == (2, True)
