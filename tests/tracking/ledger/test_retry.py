"""Waiting for a server that is away: how often it is asked, and when the waiting ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rd3.errors import StoreError, StoreUnavailable, TrackingUnavailable, Unavailable
from tracking.ledger import retry as patience
from tracking.ledger.retry import retry


class Clock:
    """Time that passes only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(patience, "time", own)
    monkeypatch.setattr(patience.random, "uniform", lambda _low, high: high)
    return own


def away(times: int, error: type[Unavailable] = StoreUnavailable) -> Callable[[], str]:
    """Answers after so many refusals."""
    left = [times]

    def ask() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error("Nobody there.")
        return "answer"

    return ask


def test_pauses_grow_to_a_limit_and_each_reason_is_told(clock: Clock) -> None:
    told: list[str] = []
    assert retry(away(7, TrackingUnavailable), waiting=told.append) == "answer"
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert told == ["Nobody there."] * 7


def test_patience_ends(clock: Clock) -> None:
    with pytest.raises(StoreUnavailable):
        retry(away(10**6), give_up_after_s=60.0)
    assert 50.0 < clock.now <= 60.0


def test_whoever_has_to_leave_does_not_wait(clock: Clock) -> None:
    with pytest.raises(StoreUnavailable):
        retry(away(1), leaving=lambda: True)
    assert clock.pauses == []


def test_what_will_not_pass_is_not_waited_for(clock: Clock) -> None:
    def refused() -> None:
        raise StoreError("The secret is wrong.")

    with pytest.raises(StoreError):
        retry(refused)
    assert clock.pauses == []
