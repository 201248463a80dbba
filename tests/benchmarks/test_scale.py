"""The command line of the simulations."""

from __future__ import annotations

import pytest

from benchmarks.scale import main


@pytest.mark.parametrize("words", [[], ["--devices", "8", "--shares", "1"], ["--part", "1", "--part", "0.25"]])
def test_a_single_simulation_is_told_all_of_its_sizes(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["one", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.splitlines()[-1].endswith("--devices, --shares and --part, each once")
