"""``rd3 labels``: what it refuses; the files themselves are tested with the evaluation."""

from __future__ import annotations


def test_labels_of_an_evaluation_that_does_not_exist(rd3, tmp_path):
    code, _out, err = rd3("labels", "export", "abc", tmp_path / "out")
    assert code == 2 and "has no evaluation abc" in err
    assert not (tmp_path / "out").exists()


def test_export_is_a_command_of_its_own(rd3):
    code, out, _err = rd3("labels", "--help")
    assert code == 0 and "export" in out
