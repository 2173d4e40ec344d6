"""The output restic: one `restic backup --stdin` per image, and one for the manifest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from backup.model import Level
from backup.protocols import Job, SnapshotSource
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import RestorePoint, SavedImage
from backup.text import size_text
from backup.transfer import backup_stream
from backup.transfer.backup_stream import Copied

from .restic_repository.messages import ResticError, Summary
from .restic_repository.repository import Repository, named
from .restic_repository.snapshots import file_name


@dataclass(frozen=True)
class Restic(Repository):
    """Saves each image with a full read. Satisfies backup.protocols.Output."""

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save the images one after another, then the manifest: only then the restore point counts."""
        images, checksums = [], {}
        for source in sources:
            save = partial(self._save_image, point, source, job)
            image, checksums[source.disk.target] = self.when_unlocked(save, point, job)
            images.append(image)
            job.image_saved(source, image)
        self.save_manifest(point, manifest.pack(point, images, checksums), job)
        return tuple(images)

    def _save_image(
        self, point: RestorePoint, source: SnapshotSource, job: Job
    ) -> tuple[SavedImage, Checksums]:
        started = time.monotonic()
        target, domain = source.disk.target, point.domain.name
        with source.open() as reader:
            copied, summary = Copied(0, Checksums()), Summary("", 0, 0)
            if reader.size:  # restic takes no empty stdin: an empty image is in the manifest only
                tags = [f"disk={target}", f"image={source.image}", f"size={reader.size}"]
                if source.disk.encryption:
                    tags.append(f"encryption={source.disk.encryption}")
                arguments = (*named(point, *tags), f"--stdin-filename={file_name(target)}")
                with self.program.backup(arguments, job.check_stop) as backup:
                    copied = backup_stream.copy(
                        reader,
                        backup.sink,
                        lambda done: job.reporter.progress(domain, target, done, reader.size),
                    )
                assert backup.summary
                summary = backup.summary
            if summary.processed != reader.size:
                message = f"image {source.image} has {reader.size} bytes, restic saved {summary.processed}"
                raise ResticError(message, "the restore point does not count")
            saved = SavedImage(
                target=target,
                image=str(source.image),
                size=reader.size,
                data_bytes=copied.data_bytes,
                stored_bytes=summary.added,
                seconds=time.monotonic() - started,
                restore_id=summary.snapshot_id,
                layout=reader.layout,
                read_bytes=copied.data_bytes,
                source=reader.source,
            )
        job.reporter.message(Level.INFO, domain, f"{target} {_summary_text(saved)}")
        return saved, copied.checksums


def _summary_text(saved: SavedImage) -> str:
    rate = size_text(int(saved.size / saved.seconds)) if saved.seconds else "-"
    return (
        f"({saved.image}) saved: {size_text(saved.size)}, {size_text(saved.data_bytes)} of data, "
        f"{size_text(saved.stored_bytes)} new, in {saved.seconds:.1f} s ({rate}/s)"
    )
