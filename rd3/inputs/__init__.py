"""Images and labels from outside: every form in which they come, the checks on them, and the sentences about them.

``rd3.evaluate``, ``rd3 set import`` and ``rd3 data add`` all take their input through this package, so that the same
input is accepted or refused everywhere with the same words.
"""

from rd3.inputs.checked import check_images_and_labels
from rd3.inputs.class_order import StatedOrder, label_name_pairs
from rd3.inputs.files import (
    IMAGE_SUFFIXES,
    by_number,
    first_windows_path,
    fix_of_layout,
    is_image_file,
    is_litter,
    order_text,
    require_regular,
    require_unbroken_links,
    shortened,
    subfolders,
    unread,
)
from rd3.inputs.label_type import GIVE_INT64, largest_exact, require_exact
from rd3.inputs.names import matched, plain_name, portable_name
from rd3.inputs.notes import Note, Say, warn_of_doubts
from rd3.inputs.parquet import open_parquet, parquet_class_names, read_columns
from rd3.inputs.pictures import DOUBTFUL, check_depth, peculiarity, picture_fault, rgb_of, whole_pictures
from rd3.inputs.pixels import eight_bit_notes, stated_space
from rd3.inputs.soft_labels import columns_in_order

__all__ = [
    "DOUBTFUL",
    "GIVE_INT64",
    "IMAGE_SUFFIXES",
    "Note",
    "Say",
    "StatedOrder",
    "by_number",
    "check_depth",
    "check_images_and_labels",
    "columns_in_order",
    "eight_bit_notes",
    "first_windows_path",
    "fix_of_layout",
    "is_image_file",
    "is_litter",
    "label_name_pairs",
    "largest_exact",
    "matched",
    "open_parquet",
    "order_text",
    "parquet_class_names",
    "peculiarity",
    "picture_fault",
    "plain_name",
    "portable_name",
    "read_columns",
    "require_exact",
    "require_regular",
    "require_unbroken_links",
    "rgb_of",
    "shortened",
    "stated_space",
    "subfolders",
    "unread",
    "warn_of_doubts",
    "whole_pictures",
]
