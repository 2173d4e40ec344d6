"""Manifests on this node by the id of their snapshot, so that an incremental backup need not read its base's.

restic's ids are hashes of the content: what an id names never changes. Nothing is lost without the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Optional

from backup.stored import Packed, PointId, StoredPoint
from backup.system.atomic_file import remove_drafts, write_atomically
from backup.system.private_directory import make_private
from backup.system.spool import MEMORY_LIMIT, OpenFile, Spool, chunks, whole

DIRECTORY = "manifests"  # in STATE_DIR
SIZE_LIMIT = 1 << 30  # bytes of all cached manifests together; that of 1 TiB of data has 9 MB
SHORTEST_ID = 8  # characters: all that restic 0.14 returns of a new snapshot's id
DIGEST = hashlib.sha256


@dataclass(frozen=True)
class ManifestCache:
    """A file for each domain: UUID.ID has a digest, then the manifest of its newest restore point.

    `state_dir`: "" for no cache.
    """

    state_dir: str

    @property
    def _directory(self) -> Path:
        return Path(self.state_dir, DIRECTORY)

    def find(self, point: StoredPoint) -> Optional[Packed]:
        """Return the restore point's manifest as it was packed, None if it is not cached, or damaged."""
        for path in self._files(point.id.uuid):
            known = path.name.rpartition(".")[2]
            if len(known) >= SHORTEST_ID and point.manifest_id.startswith(known):
                return _checked(path, point.id)
        return None

    def keep(self, point: PointId, manifest_id: str, packed: Packed) -> None:
        """Keep a manifest instead of the domain's former one, if there is room for it."""
        if not self.state_dir:
            return
        path = self._directory / f"{point.uuid}.{manifest_id}"
        with suppress(OSError):  # STATE_DIR cannot be written: the next backup reads the repository
            make_private(self._directory)
            remove_drafts(self._directory, r".+")
            self.drop(point.uuid)
            self._make_room(len(packed))
            if len(packed) <= SIZE_LIMIT:
                write_atomically(path, chain([_digest(point, packed)], chunks(packed)), durable=False)

    def drop(self, uuid: str) -> None:
        """Remove a domain's manifest."""
        for path in self._files(uuid):
            _remove(path)

    def _files(self, uuid: str) -> Sequence[Path]:
        if self.state_dir:
            with suppress(OSError):  # STATE_DIR cannot be read: the repository has all of them
                return [*self._directory.glob(f"{uuid}.*")]
        return ()

    def _make_room(self, size: int) -> None:
        """Remove the oldest manifests, of domains that no longer exist among them.

        Other workers do the same meanwhile.
        """
        found = []
        for path in self._directory.glob("[!.]*"):  # a draft is another worker's
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        left = sum(length for _, length, _ in found) + size
        for _, length, path in sorted(found):
            if left <= SIZE_LIMIT:
                return
            _remove(path)
            left -= length


def _remove(path: Path) -> None:
    with suppress(OSError):  # another worker was faster; what stays is found by its id or not at all
        path.unlink()


def _checked(path: Path, point: PointId) -> Optional[Packed]:
    """Return a file's manifest; a large one stays open as long as it is used.

    Files are replaced, and never changed.
    """
    try:
        file = path.open("rb", buffering=0)
        packed = OpenFile(file, DIGEST().digest_size)
        if len(packed) > SIZE_LIMIT:
            return None  # none of ours
        if file.read(DIGEST().digest_size) != _digest(point, packed):
            return None
        return packed if len(packed) > MEMORY_LIMIT else Spool(whole(packed))
    except OSError:
        return None


def _digest(point: PointId, packed: Packed) -> bytes:
    """Return the digest of a manifest and its restore point: a short id might name two of them."""
    digest = DIGEST(f"{point.run} {point.uuid} {point.attempt}\n".encode())
    for chunk in chunks(packed):
        digest.update(chunk)
    return digest.digest()
