"""Results as a few files of limited size, for machines that give back no more: collected there, unpacked here.

A part is a zip file whose members are stored as they are, so that nothing unpacks to more than the part is long:
``parts.json`` (what the members are, with size and sha256) and the members themselves.  A file above ``SHARD_BYTES``
travels in shards, perhaps in several parts.  Parts are filled one after the other; only the last one is written anew,
and each is replaced whole, so that what lies there at any moment can be read.
"""

from rd3.parts._collect import Collector
from rd3.parts._format import NOTES, PART_BYTES, PARTS, PATTERN, SHARD_BYTES
from rd3.parts._unpack import Unpacked, holds_parts, unpack

__all__ = [
    "NOTES",
    "PARTS",
    "PART_BYTES",
    "PATTERN",
    "SHARD_BYTES",
    "Collector",
    "Unpacked",
    "holds_parts",
    "unpack",
]
