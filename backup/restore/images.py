"""Restores the disks of a domain: all under temporary names first, then all get their final names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Callable

from ..command import COMMAND
from ..errors import BackupError
from ..job_result import Phase
from ..model import Level
from ..protocols import ImageWriter, Output, RestoreTarget, RunReporter
from ..restore_point.checksums import Checksums
from ..stored import Packed, SavedImage
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..system.undo import undone_by
from ..text import size_text
from ..transfer.compare import Comparison, Mismatch
from ..transfer.restore_stream import write_image

Wanted = Sequence[tuple[SavedImage, RestoreTarget]]

STOP_POLL = 0.1  # seconds between two checks for a stop
DAMAGED_HINT = (
    f"`{COMMAND} restore-points` lists other restore points, `{COMMAND} verify DOMAIN --at ...` checks one: "
    "restore a sound one with --at, or this one all the same with --damaged"
)


@dataclass(frozen=True)
class RestoredImage:
    """A restored disk. `written` is in bytes. `damaged`: it differs from what was saved."""

    saved: SavedImage
    target: str
    written: int
    seconds: float
    damaged: bool = False


@dataclass(frozen=True)
class ImageRestore:
    """Restores the disks of one restore point, up to `streams` at a time.

    `clones`: the targets are clones, which have their data as they exist.
    `checksums`: what the images are compared with, by target, as in SavedDomain; those of an older version
    have none. `damaged`: an image that differs is a warning, not an error with `damaged_hint`.
    `renaming` is set before the first image gets its final name: from then on the work must not be abandoned,
    or the domain would have some disks of the restore point, and others as they were.
    """

    domain: str
    output: Output
    streams: int
    reporter: RunReporter
    stop: StopRequest
    renaming: threading.Event = field(default_factory=threading.Event)
    clones: bool = False
    checksums: Mapping[str, Packed] = field(default_factory=dict)
    damaged: bool = False
    damaged_hint: str = DAMAGED_HINT

    def restore(self, wanted: Wanted) -> Sequence[RestoredImage]:
        """Restore each image to its target.

        If anything fails, everything is undone: no new image stays, and existing ones are not replaced.
        """
        self.reporter.planned(self.domain, self.domain, sum(saved.size for saved, _ in wanted))
        with self.staged(wanted) as restored:
            self.renaming.set()
            self.stop.check()  # after that: who abandons it has seen a stop, and then that it is not set
            for _, target in wanted:
                target.commit()
            for _, target in wanted:  # all have their names: from now on nothing is undone
                target.remove_replaced()
        return restored

    @contextmanager
    def staged(self, wanted: Wanted) -> Iterator[Sequence[RestoredImage]]:
        """Have all images complete under temporary names during the block.

        Those that the block does not commit are removed after it. Raises BackupError.
        """
        for _, target in wanted:
            target.require_free()
        self.reporter.phase(self.domain, Phase.RESTORE)
        with ExitStack() as stack:
            for _, target in wanted:
                stack.enter_context(undone_by(target.discard, self.reporter, self.domain))
            with ThreadPoolExecutor(self.streams, thread_name_prefix="restore") as threads:
                filling = [threads.submit(self._fill, saved, target) for saved, target in wanted]
                self._wait(filling)
            self.stop.check()  # before the error of a restic that got the same signal
            restored = [future.result() for future in filling]
            yield restored

    def _wait(self, filling: Sequence[Future[RestoredImage]]) -> None:
        """Wait for all images; a failure of one stops the others."""
        pending = set(filling)
        while pending:
            done, pending = wait(pending, STOP_POLL, FIRST_EXCEPTION)
            for future in done:
                if isinstance(error := future.exception(), BackupError):
                    self.stop.request(error)

    def _fill(self, saved: SavedImage, target: RestoreTarget) -> RestoredImage:
        self.stop.check()
        began, interval = time.monotonic(), ProgressInterval()

        def progress(done: int) -> None:
            if interval.due(done, saved.size):
                self.reporter.progress(self.domain, saved.target, done, saved.size)

        written, damaged = 0, False
        with target.opened(self.stop.check) as writer:  # which may commit it, so what differs is known before
            if saved.size and not self.clones:  # an empty image is in the manifest only
                written, damaged = self._copy(saved, writer, progress)
        restored = RestoredImage(saved, str(target), written, time.monotonic() - began, damaged)
        text = _cloned(restored) if self.clones else _summary(restored)
        self.reporter.message(Level.INFO, self.domain, text)
        return restored

    def _copy(
        self, saved: SavedImage, writer: ImageWriter, progress: Callable[[int], None]
    ) -> tuple[int, bool]:
        """Return how many bytes were written, and whether any differs from what was saved."""
        packed = self.checksums.get(saved.target)
        comparison = None if packed is None else Comparison(saved, Checksums(packed))
        with self.output.image(saved, self.stop.check) as source:
            if comparison is None:
                return write_image(source, saved.size, writer, progress), False
            written = write_image(source, saved.size, writer, progress, comparison.add)
        return written, self._differs(comparison)

    def _differs(self, comparison: Comparison) -> bool:
        try:
            comparison.require_equal()
        except Mismatch as error:
            if not self.damaged:
                raise Mismatch(f"{self.domain}: {error.message}", self.damaged_hint) from error
            text = f"{error.message}; it is restored all the same (--damaged)"
            self.reporter.message(Level.WARNING, self.domain, text)
            return True
        return False


def _summary(restored: RestoredImage) -> str:
    saved, seconds = restored.saved, restored.seconds
    rate = size_text(saved.size / seconds) if seconds else "-"
    return (
        f"{saved.target} ({saved.image}) restored to {restored.target}: {size_text(saved.size)}, "
        f"{size_text(restored.written)} written, in {seconds:.1f} s ({rate}/s)"
    )


def _cloned(restored: RestoredImage) -> str:
    saved = restored.saved
    return f"{saved.target} ({saved.image}) cloned to {restored.target} in {restored.seconds:.1f} s"
