"""Synthetic sets on disk: written block by block, checked on opening, imported and exported.

A set is a folder: ``manifest.json`` (written last: its presence means complete) and ``blocks/00000.safetensors`` ...
Rows are k-major: image ``k`` of class ``label`` is row ``k * C + label``, so the first ``k * C`` rows of a set of a
method that nests are its IPC-``k`` set.
"""

from rd3.synthetic_set.export import contact_sheet, export_parquet, export_png, rows_of_sheet
from rd3.synthetic_set.foreign import IMPORTED, import_folder, import_tensors
from rd3.synthetic_set.manifest import Manifest, Phase, read_manifest
from rd3.synthetic_set.opened import SetOnDisk, SyntheticSet
from rd3.synthetic_set.writer import SetWriter

__all__ = [
    "IMPORTED",
    "Manifest",
    "Phase",
    "SetOnDisk",
    "SetWriter",
    "SyntheticSet",
    "contact_sheet",
    "export_parquet",
    "export_png",
    "import_folder",
    "import_tensors",
    "read_manifest",
    "rows_of_sheet",
]
