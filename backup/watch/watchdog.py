"""The watchdog: a process that outlives all others of the run, to thaw guests should they all be killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Callable

from ..errors import BackupError, reason
from ..job.freeze_notes import Journal, Note
from ..job.thaw import Thaws
from ..model import Level
from ..protocols import Reporter
from ..settings import Settings
from ..system.atomic_file import write_atomically
from ..system.child_records import end_orphans
from ..system.process import SPAWN, signals_blocked
from ..system.process_group import ProcessId, is_running, process_id
from ..system.process_title import set_title
from .background_reporter import Aside, reported
from .node_lock import as_watchdog

POLL = 1.0  # seconds between two looks at the notes while the run is alive
MARGIN = 2.0  # seconds after which it does what the main process, if that is not stopped too, has done before
FIRST_PAUSE = 0.05  # seconds until it looks again whether it may thaw what is left; doubled up to the last
LAST_PAUSE = 15.0
START_LIMIT = 60.0  # seconds that it may take to start, on a node that is busy
READY_POLL = 0.1  # seconds between two checks whether it has started
PARTING = 10.0  # seconds that the main process waits for it at its own end


class Watchdog:
    """The watchdog of a run, started anew when somebody kills it. Close it.

    It sleeps until the last process that holds the `lifeline` has ended: so every process that may quiesce a
    guest has to keep it open. `reporter` is pickled on its way there.
    """

    def __init__(self, settings: Settings, reporter: Reporter) -> None:
        """Start it. Raises BackupError."""
        self._settings = settings
        self._reporter = reporter
        self._theirs, self.lifeline = SPAWN.Pipe(duplex=False)
        self._starters: list[SpawnProcess] = []  # which end as soon as a watchdog is on its own
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._life = self._started()

    def wait_until_ready(self, check_stop: Callable[[], None]) -> None:
        """Wait until it watches: before that no guest may be quiesced. Raises BackupError."""
        deadline = time.monotonic() + START_LIMIT
        while not self._ready.wait(READY_POLL):
            check_stop()
            self.revive()
            if time.monotonic() > deadline:
                message = f"the watchdog process did not start within {START_LIMIT:.0f} s"
                raise BackupError(message, "without it a guest could stay frozen; is this node overloaded?")

    def revive(self) -> None:
        """Start it again if it has ended, which it never does by itself while a run is active."""
        with self._lock:
            if self._life.poll() and not self._has_started():
                self._restart()

    def _has_started(self) -> bool:
        """Return whether what can be received is that it watches now, rather than that it has ended."""
        try:
            self._life.recv_bytes()
        except (EOFError, OSError):
            return False
        self._ready.set()
        return True

    def _restart(self) -> None:
        try:
            started = self._started()
        except BackupError:
            return  # the next look tries again
        self._life.close()
        self._life = started
        text = "the watchdog was killed: it is started again, as without it a guest could stay frozen"
        self._reporter.message(Level.WARNING, "", text)

    def close(self) -> None:
        """Let it end, and wait for that, unless it goes on thawing what could not be thawed by now."""
        self._theirs.close()
        self.lifeline.close()
        left = [note.name for note in Journal(self._settings.runtime_dir).notes()]
        if left:
            text = f"{', '.join(left)} may still be frozen or paused: the watchdog tries on in the background"
            self._reporter.message(Level.ERROR, "", text)
        else:
            self._wait_for_its_end()
        self._life.close()
        for process in self._starters:
            process.join()

    def _wait_for_its_end(self) -> None:
        deadline = time.monotonic() + PARTING
        while self._life.poll(max(deadline - time.monotonic(), 0)) and self._has_started():
            pass

    def _started(self) -> Connection:
        """Start one; what is returned receives a message when it watches, and is at its end with it."""
        try:
            life, its_own = SPAWN.Pipe(duplex=False)
            arguments = (self._theirs, its_own, self._settings, self._reporter)
            process = SPAWN.Process(target=_detached, args=arguments, name="watchdog")
            with signals_blocked(), its_own:
                process.start()
        except OSError as error:
            message = f"cannot start the watchdog process: {reason(error)}"
            hint = "without it a guest could stay frozen; is this node out of memory?"
            raise BackupError(message, hint) from error
        self._starters.append(process)
        return life


@contextmanager
def watched(settings: Settings, reporter: Reporter) -> Iterator[Watchdog]:
    """Have a watchdog during the block; only for the holder of the node's lock."""
    watchdog = Watchdog(settings, reporter)
    try:
        yield watchdog
    finally:
        watchdog.close()


def _detached(lifeline: Connection, life: Connection, settings: Settings, reporter: Reporter) -> None:
    """Watch in a process of its own, which no parent waits for; `life` is open as long as it lives."""
    if os.fork() == 0:
        try:
            with reported(reporter):
                _watch(lifeline, life, settings, reporter)
        finally:
            os._exit(0)


def _watch(lifeline: Connection, life: Connection, settings: Settings, reporter: Reporter) -> None:
    """Wait for the end of all others; then thaw and resume what is noted, for as long as it takes."""
    os.setsid()  # neither a terminal's Ctrl-C nor its end are meant for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_title("watchdog")
    newest = _Newest(settings.runtime_dir)
    newest.sign()
    with suppress(OSError):  # the main process has ended already
        life.send_bytes(b"ready")
    with Aside(reporter) as aside:
        thaws = Thaws(settings, aside)
        while not _ended(lifeline):
            with reported(aside):
                thaws.enforce(MARGIN)
        orphans = threading.Thread(target=end_orphans, args=(settings.runtime_dir,), name="orphans")
        orphans.start()  # beside the thaw, which is what cannot wait
        _thaw_all(thaws, settings, newest, aside)
        newest.resign()
        orphans.join()


def _ended(lifeline: Connection) -> bool:
    """Wait for the end of all others, but not for long."""
    try:
        if lifeline.poll(POLL):
            lifeline.recv_bytes()  # nothing is ever sent
    except EOFError:
        return True
    return False


def _thaw_all(thaws: Thaws, settings: Settings, newest: _Newest, reporter: Reporter) -> None:
    """Deal with each note, between runs, until a newer run's watchdog does: that has begun with the notes.

    The lock may still be held by a process that is being killed: its files are closed one after the other.
    """
    pause = FIRST_PAUSE
    while Journal(settings.runtime_dir).notes() and newest.is_this():
        with reported(reporter), as_watchdog(settings.runtime_dir) as alone:
            if alone:
                thaws.round(_any)
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


class _Newest:
    """Which watchdog is the newest: it has signed in RUNTIME_DIR."""

    def __init__(self, runtime_dir: str) -> None:
        self._path = Path(runtime_dir, "watchdog")

    def sign(self) -> None:
        with suppress(OSError):  # the directory is full: there may be two then
            write_atomically(self._path, json.dumps(process_id(os.getpid())).encode(), durable=False)

    def resign(self) -> None:
        """Leave no file, unless it is a newer one's."""
        if self._path.exists() and self.is_this():
            with suppress(OSError):
                self._path.unlink()

    def is_this(self) -> bool:
        """Tell whether no newer one lives."""
        try:
            newest = ProcessId(*json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return True
        return newest.pid == os.getpid() or not is_running(newest)


def _any(_note: Note) -> bool:
    return True
