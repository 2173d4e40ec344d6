"""The output restic: one `restic backup --stdin` per image, and one for the manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from backup.model import Level
from backup.protocols import Job, SnapshotSource
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.settings import Settings
from backup.stored import RestorePoint, SavedImage
from backup.system.concurrency_limit import Slots
from backup.text import size_text
from backup.transfer import backup_stream
from backup.transfer.backup_stream import Copied

from .restic_repository.messages import ResticError, Summary
from .restic_repository.repository import Repository, named
from .restic_repository.snapshots import file_name
from .streams import Streams


@dataclass(frozen=True)
class Restic(Repository):
    """Saves each image with a full read. Satisfies backup.protocols.Output.

    `streams`: images that are read at the same time, by all workers of the node.
    """

    streams: int = 1

    @classmethod
    def _own_settings(cls, settings: Settings) -> Mapping[str, Any]:
        return {"streams": settings.stream_count}

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save the images at the same time, then the manifest: only then the restore point counts."""
        streams = Streams(Slots(self.program.runtime_dir, "stream", self.streams), point.domain.name)
        saved = streams.each(sources, job, partial(self._save_when_unlocked, point))
        images = [image for image, _ in saved]
        checksums = {image.target: one for image, one in saved}
        if job.verifies:  # only now, as another phase begins with it
            for source, image in zip(sources, images):
                job.image_saved(source, image)
        self.save_manifest(point, manifest.pack(point, images, checksums), job)
        return tuple(images)

    def _save_when_unlocked(
        self, point: RestorePoint, source: SnapshotSource, job: Job
    ) -> tuple[SavedImage, Checksums]:
        saved = self.when_unlocked(partial(self._save_image, point, source, job), point, job)
        if not job.verifies:
            job.image_saved(source, saved[0])  # its snapshot is removed while others are streamed
        return saved

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
