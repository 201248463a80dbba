"""A recipe that is running: its progress, and what of it an earlier attempt had finished."""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINT_UNUSABLE = "restarting"
"""First word of the note with which a training says that it cannot use its checkpoint (:mod:`rd3.teacher`)."""
RESUMED = 0.25
"""A recipe that reports progress after less than this fraction of the planned time resumes an earlier attempt."""


@dataclass
class Running:
    """One running recipe.  All times are of the same clock, in seconds."""

    since: float
    fraction: float = 0.0
    note: str = ""
    first: tuple[float, float] | None = None
    """(time, fraction) of the first report; earlier progress may be of an earlier attempt."""
    reported: float = 0.0
    """Time of the last report."""
    pack: int = 1
    """Number of recipes run together, which share the time equally; it says little about a recipe that runs alone."""
    logits_read: bool = False
    """Whether it reads cached teacher logits, or may; its time says little about an evaluation that asks teachers."""

    def report(self, now: float, fraction: float, note: str) -> None:
        self.fraction, self.note, self.reported = fraction, note, now
        self.first = self.first or (now, fraction)

    def begun(self, planned_s: float) -> tuple[float, float]:
        """(time, fraction) at which this attempt began to add to the work of earlier attempts."""
        if self.first is not None:
            at, fraction = self.first
            if at - self.since < RESUMED * fraction * planned_s:
                return self.first
        return self.since, 0.0

    @property
    def pace(self) -> tuple[float, float] | None:
        """(seconds, fraction) between the first and the last report; None without progress between them."""
        if self.first is None or self.fraction <= self.first[1]:
            return None
        return self.reported - self.first[0], self.fraction - self.first[1]
