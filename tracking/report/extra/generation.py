"""Generation time of sets, with and without what is prepared for them."""

from __future__ import annotations

from tracking.report.blocks import method_text
from tracking.report.extra._base import Cell, Table, register_table
from tracking.report.results import Results
from tracking.report.scores import Score
from tracking.report.tables import seconds_text

_COLUMNS = ("dataset", "IPC", "method", "images", "CPU s", "CPU s of preparation", "wall s", "wall s of preparation")
_PER_IMAGE = "wall s per image, without preparation"
_NOTE = (
    "Preparation is what the set needs besides its teachers, their recorded trainings and diffusion models: layer "
    "statistics, fine-tuning, prototypes, the set that it starts from. Other sets may share it."
)


@register_table("generation")
def generation(results: Results) -> Table | None:
    """Generation time with and without preparation, and per image; for grids with a method that prepares something."""
    if not any(score.preparation_process_s for score in results.scores):
        return None
    distinct = {(score.method, score.sets): score for score in results.scores if score.generation_wall_s is not None}
    return Table("Generation time", (*_COLUMNS, _PER_IMAGE), [_row(score) for score in distinct.values()], _NOTE)


def _row(score: Score) -> list[Cell]:
    times = (score.generation_process_s, score.preparation_process_s, score.generation_wall_s, score.preparation_wall_s)
    return [
        *(score.dataset, score.ipc, method_text(score), score.set_size),
        *(seconds_text(time) for time in times),
        seconds_text(_per_image(score)),
    ]


def _per_image(score: Score) -> float | None:
    if not score.set_size or score.generation_wall_s is None or score.preparation_wall_s is None:
        return None
    return (score.generation_wall_s - score.preparation_wall_s) / score.set_size
