"""``rd3 protocol diff``: what distinguishes two protocols, by student."""

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
    code, _out, err = rd3("protocol", "diff", "rd3", "cvdd")
    assert (code, "Protocol cvdd is incomplete, as protocols cannot express logits" in err) == (2, True)


def test_equal_protocols_and_unknown_names_are_said(rd3, home):
    code, out, _err = rd3("protocol", "diff", "cda", "dwa")
    assert (code, out) == (0, "cda and dwa are equal on imagenet1k\n")
    code, _out, err = rd3("protocol", "diff", "rd3", "pca-sof")
    assert (code, "did you mean 'pca-soft'" in err) == (2, True)
