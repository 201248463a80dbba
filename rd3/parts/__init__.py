"""Results in a few files of limited size, for machines with limited output: collected there, unpacked here.

A part is a zip file with uncompressed members, so that nothing unpacks to more than the size of the part:
``parts.json`` (the list of members, with size and sha256) and the members themselves.  A file above ``SHARD_BYTES`` is
split into shards, possibly in several parts.  Parts are filled one after the other; only the last one is rewritten, and
atomically, so that the parts are readable at any time.
"""

from rd3.parts._collect import Collector
from rd3.parts._format import PART_BYTES, PARTS, SHARD_BYTES
from rd3.parts._unpack import holds_parts, unpack

__all__ = ["PARTS", "PART_BYTES", "SHARD_BYTES", "Collector", "holds_parts", "unpack"]
