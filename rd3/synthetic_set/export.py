"""Export a set as PNG files, as a Parquet file in the Hugging Face layout, or as a contact sheet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd3.errors import BadValue
from rd3.lazy import pa, pq, torch
from rd3.store import new_folder, write_atomically, write_errors
from rd3.synthetic_set.opened import SetOnDisk, SyntheticSet
from rd3.synthetic_set.soft_file import write_soft_labels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_SHEET_SIDE = 2400
"""Longest side of a contact sheet in pixels."""
_GAP = 2


def _eight_bit(images: torch.Tensor) -> torch.Tensor:
    """Images as uint8; floats in [0, 1] are rounded to 8 bits."""
    return images if images.dtype.itemsize == 1 else (images * 255).round().byte()


def _picture(image: torch.Tensor) -> Picture:
    """The picture of an image (3, H, W) uint8."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _png(picture: Picture) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def export_png(synthetic_set: SyntheticSet, folder: Path) -> Path:
    """Write ``folder/<class id>/<k>.png``, readable by :func:`import_folder`; float images are rounded to 8 bits.

    Soft labels of the set's own are written as they are, into ``folder/soft_labels.safetensors``.  Raises
    :class:`BadValue` for a file or a folder with files in it, and :class:`StoreError` if it cannot be written, with
    nothing left.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise BadValue(f"{folder} is a file, expected a folder.", "choose a new folder")
    if folder.exists() and any(folder.iterdir()):
        raise BadValue(f"{folder} is not empty.", "choose a new folder, so that images are not mixed")
    ids = synthetic_set.manifest.class_ids
    usable = all(name == Path(name).name and name not in ("", "..") for name in ids)  # as names of folders
    names = ids if usable else [f"{label:05d}" for label in range(len(ids))]
    files = [f"{names[row % len(ids)]}/{row // len(ids):05d}.png" for row in range(len(synthetic_set.images))]
    with write_errors(folder), new_folder(folder) as staging:
        for file, image in zip(files, _eight_bit(synthetic_set.images), strict=True):
            path = staging / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_png(_picture(image)))
        if synthetic_set.soft_labels is not None:
            write_soft_labels(staging, synthetic_set.soft_labels, files, ids)
    return folder


def export_parquet(synthetic_set: SyntheticSet, path: Path) -> Path:
    """Write one Parquet file in the Hugging Face image layout: ``image`` (PNG bytes) and ``label`` with the class ids.

    ``datasets.load_dataset("parquet", data_files=path)`` gives Image and ClassLabel columns.  Float images are rounded
    to 8 bits.  Soft labels of the set's own are the column ``soft_labels``, in fp32 if they are in bf16, and their kind
    is in the notes ``rd3``.
    """
    manifest, classes = synthetic_set.manifest, synthetic_set.num_classes
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(manifest.class_ids), "_type": "ClassLabel"},
    }
    origin = {"key": manifest.key, "method": manifest.method, "content": manifest.content}
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    pictures = [
        {"bytes": _png(_picture(image)), "path": f"{row % classes:05d}_{row // classes:05d}.png"}
        for row, image in enumerate(_eight_bit(synthetic_set.images))
    ]
    columns: dict[str, Any] = {"image": pictures, "label": synthetic_set.labels.tolist()}
    if synthetic_set.soft_labels is not None:
        soft = synthetic_set.soft_labels
        values = soft.values.float() if soft.dtype == "bfloat16" else soft.values
        dtype = str(values.dtype).removeprefix("torch.")
        origin["soft_label_kind"] = soft.kind
        fields.append(("soft_labels", pa.list_(getattr(pa, dtype)())))
        columns["soft_labels"] = list(values.numpy())
        value = {"dtype": dtype, "_type": "Value"}
        features["soft_labels"] = {"feature": value, "length": classes, "_type": "Sequence"}
    notes = {"huggingface": json.dumps({"info": {"features": features}}), "rd3": json.dumps(origin)}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(fields, metadata=notes)), stream)
    with write_errors(path):
        write_atomically(Path(path), stream.getvalue())
    return Path(path)


def rows_of_sheet(size: tuple[int, int], ipc: int, per_class: int = 10) -> int | None:
    """Number of classes on a sheet of :func:`contact_sheet`; None if its ``size`` (width, height) is not of one."""
    width, height = (side - _GAP for side in size)
    thumb, odd = divmod(width, min(per_class, ipc))
    rows, rest = divmod(height, thumb) if thumb > _GAP else (0, 1)
    return None if odd or rest else rows


def contact_sheet(synthetic_set: SetOnDisk, path: Path, per_class: int = 10) -> Path:
    """Write a PNG with a row for every class (the first that fit) and its first ``per_class`` images in columns."""
    from PIL import Image

    side, classes = synthetic_set.manifest.resolution, synthetic_set.num_classes
    columns = min(per_class, synthetic_set.manifest.ipc, _SHEET_SIDE // (16 + _GAP))
    thumb = max(16, min(max(side, 64), _SHEET_SIDE // max(columns, min(classes, 20)) - _GAP))
    rows = min(classes, _SHEET_SIDE // (thumb + _GAP))
    sheet = Image.new("RGB", (columns * (thumb + _GAP) + _GAP, rows * (thumb + _GAP) + _GAP), "white")
    # Small images are enlarged with nearest neighbours, large ones reduced with antialiasing.
    resample = Image.Resampling.NEAREST if thumb >= side else Image.Resampling.BOX
    for label in range(rows):
        for k in range(columns):
            pixels = _eight_bit(synthetic_set.rows([k * classes + label])[0])
            picture = _picture(pixels).resize((thumb, thumb), resample)
            sheet.paste(picture, (_GAP + k * (thumb + _GAP), _GAP + label * (thumb + _GAP)))
    write_atomically(Path(path), _png(sheet))
    return Path(path)
