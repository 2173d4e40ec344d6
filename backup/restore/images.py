"""The restore of one domain's disks: all of them complete under temporary names first, then all named."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..errors import BackupError
from ..job_result import Phase
from ..model import Level
from ..protocols import Output, RestoreTarget, RunReporter
from ..stored import SavedImage
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..system.undo import undone_by
from ..text import size_text
from ..transfer.restore_stream import refill

Wanted = Sequence[tuple[SavedImage, RestoreTarget]]

STOP_POLL = 0.1  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class RestoredImage:
    """A disk that has come back. Bytes that were written, and seconds that it took."""

    saved: SavedImage
    target: str
    written: int
    seconds: float


@dataclass(frozen=True)
class Restore:
    """Brings the disks of one restore point back, up to `workers` at a time."""

    domain: str
    output: Output
    workers: int
    reporter: RunReporter
    stop: StopRequest

    def bring_back(self, wanted: Wanted) -> Sequence[RestoredImage]:
        """Restore each image to its target.

        Whatever is raised, BackupError among it, nothing is left of what was begun, and what was to be
        replaced is there as before.
        """
        self.reporter.planned(self.domain, self.domain, sum(saved.size for saved, _ in wanted))
        with self.filled(wanted) as restored:
            for _, target in wanted:
                target.commit()
            for _, target in wanted:  # each has its name: there is no way back, and no need of one
                target.remove_replaced()
        return restored

    @contextmanager
    def filled(self, wanted: Wanted) -> Iterator[Sequence[RestoredImage]]:
        """Have all images complete, under their temporary names, during the block.

        What it does not keep is gone afterwards. Raises BackupError.
        """
        for _, target in wanted:
            target.require_free()
        self.reporter.phase(self.domain, Phase.RESTORE)
        with ExitStack() as stack:
            for _, target in wanted:
                stack.enter_context(undone_by(target.discard, self.reporter, self.domain))
            with ThreadPoolExecutor(self.workers, thread_name_prefix="restore") as threads:
                filling = [threads.submit(self._fill, saved, target) for saved, target in wanted]
                pending = set(filling)
                while pending:
                    done, pending = wait(pending, STOP_POLL, FIRST_EXCEPTION)
                    for future in done:
                        if isinstance(error := future.exception(), BackupError):
                            self.stop.request(error)  # the others need not go on
            self.stop.check()  # before what a restic says that got the same signal
            restored = [future.result() for future in filling]
            yield restored

    def _fill(self, saved: SavedImage, target: RestoreTarget) -> RestoredImage:
        self.stop.check()
        began, throttle = time.monotonic(), ProgressInterval()

        def progress(done: int) -> None:
            if throttle.due(done, saved.size):
                self.reporter.progress(self.domain, saved.target, done, saved.size)

        written = 0
        with target.opened(self.stop.check) as writer:
            if saved.size:  # an image of no bytes is in the manifest alone
                with self.output.image(saved, self.stop.check) as source:
                    written = refill(source, saved.size, writer, progress)
        restored = RestoredImage(saved, str(target), written, time.monotonic() - began)
        self.reporter.message(Level.INFO, self.domain, _told(restored))
        return restored


def _told(one: RestoredImage) -> str:
    rate = size_text(one.saved.size / one.seconds) if one.seconds else "-"
    return (
        f"{one.saved.target} ({one.saved.image}) restored to {one.target}: {size_text(one.saved.size)}, "
        f"{size_text(one.written)} of it written, in {one.seconds:.1f} s ({rate}/s)"
    )
