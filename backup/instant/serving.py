"""Serves the disks of a restore point to a guest, for as long as it takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..errors import BackupError, TransientError
from ..model import Level
from ..mount.shown_file import File
from ..mount.shown_point import ShownPoint, opened_point
from ..protocols import Output, Reporter
from ..stored import StoredPoint
from ..system.stop_request import StopRequest
from ..system.time_limit import CheckStop
from .server import SECTOR, Server, served

POLL = 0.2  # seconds between two checks
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before the restore point is opened again
CLOSE_LIMIT = 20.0  # seconds for the output to close it


@dataclass
class Serving:
    """Serves a restore point's disks on a socket, and opens it again whenever the output fails.

    `users` are the UIDs that may read. Reads that fail pause the guest, which has to be resumed: see `ready`.
    """

    output: Output
    point: StoredPoint
    targets: Sequence[str]
    socket: str
    users: Collection[int]
    limit: float
    reporter: Reporter
    domain: str
    check_stop: CheckStop
    _end: StopRequest = field(default_factory=StopRequest, init=False)
    _ready: threading.Event = field(default_factory=threading.Event, init=False)
    _first: BackupError | None = field(default=None, init=False)
    _bug: Exception | None = field(default=None, init=False)
    _reported: str = field(default="", init=False)

    @property
    def ready(self) -> bool:
        """Whether reads are answered now."""
        return self._ready.is_set()

    def check(self) -> None:
        """Raise a bug that has ended it."""
        if self._bug:
            raise self._bug

    @contextmanager
    def running(self) -> Iterator[Serving]:
        """Serve during the block. Raises BackupError if the restore point cannot be opened at first."""
        thread = threading.Thread(target=self._run, name="serving", daemon=True)
        thread.start()
        try:
            while thread.is_alive() and not self._ready.wait(POLL):
                self.check_stop()
            self.check()
            if self._first:
                raise self._first
            yield self
        finally:
            self._end.request(TransientError("the restore has ended"))
            thread.join(CLOSE_LIMIT)

    def _run(self) -> None:
        opened, pause = False, FIRST_PAUSE
        while not self._end.requested:
            try:
                with opened_point(self.output, self.point, self.limit, self._end.check) as shown:
                    self._serve(shown)
            except BackupError as error:
                if self._ready.is_set():
                    opened, pause = True, FIRST_PAUSE
                elif not opened:
                    self._first = error
                    return
                self._ready.clear()
                if not self._end.requested:
                    self._report(f"the restore point is opened again: {error}")
            except Exception as error:  # a bug: raised where somebody waits
                self._bug = error
                self._ready.clear()
                return
            self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _serve(self, shown: ShownPoint) -> None:
        """Serve until the end, or until nothing can be read any more. Raises BackupError."""
        disks = {target: shown.disks[target] for target in self.targets}
        for disk in disks.values():  # QEMU may read here while libvirt starts it, which would wait for it
            disk.content.read(0, SECTOR)
        with suppress(FileNotFoundError):
            os.unlink(self.socket)
        with served(disks, self.socket, self.users, self._failed) as server:
            self._ready.set()
            self._watch(shown, server)

    def _watch(self, shown: ShownPoint, server: Server) -> None:
        while True:
            self._end.check()
            shown.check()
            server.check()
            if damage := shown.damage():
                self._report(f"the guest waits for what the repository has lost: {damage}")
            time.sleep(POLL)

    def _failed(self, file: File, offset: int, error: BackupError) -> None:
        if not self._end.requested:
            self._report(f"{file.name}: cannot read at offset {offset}, the guest waits: {error}")

    def _report(self, text: str) -> None:
        """Report it once, not with each retry."""
        if text != self._reported:
            self._reported = text
            self.reporter.message(Level.WARNING, self.domain, text)

    def _wait(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        while time.monotonic() < over and not self._end.requested:
            time.sleep(POLL)
