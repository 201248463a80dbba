"""Images and labels from outside: every form in which they come, the checks on them, and the sentences about them.

``rd3.evaluate``, ``rd3 set import`` and ``rd3 data add`` all take their input through this package, so that the same
input is accepted or refused everywhere with the same words.
"""

from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.class_order import StatedOrder, named_labels
from rd3.inputs.files import (
    IMAGE_SUFFIXES,
    by_number,
    how_to_unpack,
    is_image_file,
    is_litter,
    order_text,
    require_links,
    require_regular,
    shortened,
    subfolders,
    unread,
    windows_path,
)
from rd3.inputs.label_type import WIDER, largest_exact, require_exact
from rd3.inputs.names import file_name, matched, plain_name
from rd3.inputs.notes import Note, Say, warn_of_doubts
from rd3.inputs.parquet import open_parquet, parquet_class_names, read_columns
from rd3.inputs.pictures import DOUBTFUL, check_depth, peculiarity, rgb_of, whole_pictures
from rd3.inputs.pixels import eight_bit_notes, stated_space
from rd3.inputs.soft_labels import columns_in_order

__all__ = [
    "DOUBTFUL",
    "IMAGE_SUFFIXES",
    "WIDER",
    "Note",
    "Say",
    "StatedOrder",
    "by_number",
    "check_depth",
    "check_images_and_labels",
    "columns_in_order",
    "eight_bit_notes",
    "file_name",
    "how_to_unpack",
    "is_image_file",
    "is_litter",
    "largest_exact",
    "matched",
    "named_labels",
    "open_parquet",
    "order_text",
    "parquet_class_names",
    "peculiarity",
    "plain_name",
    "read_columns",
    "require_exact",
    "require_links",
    "require_regular",
    "rgb_of",
    "shortened",
    "stated_space",
    "subfolders",
    "unread",
    "warn_of_doubts",
    "whole_pictures",
    "windows_path",
]
