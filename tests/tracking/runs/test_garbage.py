"""The garbage collector is off inside, and afterwards as it was before."""

from __future__ import annotations

import gc

import pytest

from tracking.runs.garbage import without_collection


@pytest.fixture(params=[True, False])
def collects(request: pytest.FixtureRequest):
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_collection_is_off_inside_and_as_before_afterwards(collects):
    with without_collection():
        with without_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() == collects


def test_an_error_inside_changes_nothing(collects):
    @without_collection()
    def fails() -> None:
        raise ValueError(str(gc.isenabled()))

    with pytest.raises(ValueError, match="False"):
        fails()
    assert gc.isenabled() == collects
