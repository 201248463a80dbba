"""Contact sheets of a report: the images of the first set of each score, with class names."""

from __future__ import annotations

import base64
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rd3.errors import RD3Error
from tracking.report.blocks import method_text
from tracking.report.scores import Score
from tracking.report.tables import seconds_text
from tracking.runs.fields import Find

Fetch = Callable[[str, str], Path]
"""Maps (kind, key) to a local folder with the verified files."""


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of a set as a data URI, or the reason for its absence."""

    title: str
    caption: str
    source: str
    reason: str = ""
    classes: tuple[str, ...] = ()
    """Class names of the rows, from the top; empty if they are unknown."""


def contact_sheets(found: Sequence[Score], find: Find, fetch: Fetch) -> list[Sheet]:
    """The contact sheet of the first finished set of each score, in order; a set of several scores is shown once."""
    firsts: dict[str, Score] = {}
    for score in found:
        key = next((key for key in score.sets if find("set", key) is not None), None)
        if key is not None:
            firsts.setdefault(key, score)
    teachers = Counter(title for title, _teacher in {(_title(score), score.teacher) for score in firsts.values()})
    return [
        _sheet(_title(score) + (f", {score.teacher}" if teachers[_title(score)] > 1 else ""), score, key, fetch)
        for key, score in firsts.items()
    ]


def _title(score: Score) -> str:
    return f"{method_text(score)}, {score.dataset}, IPC {score.ipc}"


def _sheet(title: str, score: Score, key: str, fetch: Fetch) -> Sheet:
    spent = seconds_text(score.generation_s)
    mean = ", a mean over the sets" if len(score.sets) > 1 else ""
    caption = f"set {key[:12]}" + (f", generated in {spent} {score.generation_unit}{mean}" if spent else "")
    try:
        picture = _picture(fetch("set", key))
    except RD3Error as error:
        return Sheet(title, caption, "", error.message)
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return Sheet(title, caption, source, classes=_classes_of_rows(picture, score))


def _picture(folder: Path) -> bytes:
    """The stored contact sheet of a set; one is drawn from the images of a set that was imported without it."""
    stored = folder / "contact_sheet.png"
    if stored.is_file():
        return stored.read_bytes()
    from rd3.synthetic_set import SetOnDisk, contact_sheet

    with tempfile.TemporaryDirectory() as scratch:
        return contact_sheet(SetOnDisk.open(folder), Path(scratch) / "sheet.png").read_bytes()


def _classes_of_rows(picture: bytes, score: Score) -> tuple[str, ...]:
    from PIL import Image

    from rd3.datasets import dataset_info
    from rd3.synthetic_set import rows_of_sheet

    try:
        names = dataset_info(score.dataset).class_names
    except RD3Error:  # a dataset that is registered on another machine
        return ()
    rows = rows_of_sheet(Image.open(io.BytesIO(picture)).size, score.ipc)
    # The picture of an imported set may have another layout.
    return names[:rows] if rows is not None and rows <= len(names) else ()
