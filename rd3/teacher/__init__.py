"""Teachers: trained here or imported, kept as weights with a manifest, loaded through checks.

A teacher is a folder: ``weights.safetensors`` (the bare network, torchvision's names for ResNets), ``manifest.json``
(written last: a folder with one is whole) and, where it was trained here, ``curve.parquet``.
"""

from rd3.teacher.artifact import TeacherManifest, load, verify
from rd3.teacher.foreign import import_weights, weights_digest
from rd3.teacher.training import train

__all__ = ["TeacherManifest", "import_weights", "load", "train", "verify", "weights_digest"]
