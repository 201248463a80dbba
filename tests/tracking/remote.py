"""A folder that stands for a bucket: its files have to be downloaded, and a download can go wrong."""

from __future__ import annotations

from pathlib import Path

from tracking.ledger.object_store import FolderObjects


class RemoteFolder:
    """The objects below a folder, which cannot be used in place."""

    folder = None

    def __init__(self, root: Path):
        self._objects = FolderObjects(root)
        self.downloads = 0
        self.damaged = 0
        """Number of downloads that will lose a byte on their way."""

    def download(self, name: str, target: Path) -> bool:
        self.downloads += 1
        found = self._objects.download(name, target)
        if self.damaged:
            self.damaged -= 1
            target.write_bytes(target.read_bytes()[:-1])
        return found
