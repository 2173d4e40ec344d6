"""The watchdog: a process that outlives all others of the run, and thaws guests if they were killed."""

from __future__ import annotations

import _thread
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Callable, Optional

from ..errors import BackupError, reason
from ..model import Level
from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes
from ..quiesce.thaw_rounds import Thaws
from ..settings import Settings
from ..system.child_records import end_orphans
from ..system.process import SPAWN, leave_resource_tracker, spawning
from ..system.process_end import ended
from ..system.process_group import ProcessId, kill, process_id, sees_own_pids
from ..system.process_title import set_title
from ..system.time_limit import begun
from .background_reporter import BackgroundReporter, bugs_reported
from .newest import Newest
from .thaw_all import thaw_own

POLL = 1.0  # seconds between two checks of the notes while the run is alive
MARGIN = 2.0  # seconds by which it acts later than the main process, which may be stopped
START_LIMIT = 60.0  # seconds that it may take to start, on a busy node
FIRST_RESTART = 0.5  # seconds between two restarts of one that ends at once; doubled up to the last
LAST_RESTART = 15.0
READY_POLL = 0.1  # seconds between two checks whether it has started
END_LIMIT = 10.0  # seconds that the main process waits for its end
SILENCE = 6.0  # seconds without a sign of life, which it gives every POLL seconds: it was stopped
CHECKS = 2  # of the guard in a second


KILLED = "the watchdog was killed and is restarted: without it a guest could stay frozen"
STOPPED = "the watchdog gave no sign of life and is replaced: without it a guest could stay frozen"
NEVER_READY = "the watchdog ended before it was ready and is restarted: without it a guest could stay frozen"


@dataclass
class _Started:
    """A watchdog that was started. `restart_pause`: seconds until the next may be, if it ends at once.

    `process` is its id, if known; until it watches, that of the one that it replaces.
    """

    life: Connection
    process: Optional[ProcessId] = None
    restart_pause: float = FIRST_RESTART
    began: float = field(default_factory=time.monotonic)
    watches: bool = False
    silent_checks: int = 0

    @property
    def restart_at(self) -> float:
        return self.began + self.restart_pause

    def lives(self) -> bool:
        """Receive its signs of life, the first of which is that it watches; return False if it has ended."""
        try:
            while self.life.poll():
                process = json.loads(self.life.recv_bytes())
                self.process = ProcessId(*process) if process else None
                self.watches = True
                self.silent_checks = 0
        except (EOFError, OSError):
            return False
        return True

    def kill(self) -> None:
        if self.process:
            with suppress(OSError):
                kill(self.process)


class Watchdog:
    """The watchdog of a run, restarted if it is killed, and replaced if it is stopped. Close it.

    It sleeps until the last process with the `lifeline` open has ended: each process that may quiesce a guest
    must keep it open. `reporter` is pickled on its way there.
    """

    def __init__(self, settings: Settings, reporter: Reporter) -> None:
        """Start it. Raises BackupError."""
        self._settings = settings
        self._reporter = reporter
        self._theirs, self.lifeline = SPAWN.Pipe(duplex=False)
        self._starters: list[SpawnProcess] = []  # each ends as soon as its watchdog runs
        self._lock = threading.Lock()
        self._present = _Started(self._started(None))

    def wait_until_ready(self, check_stop: Callable[[], None]) -> None:
        """Wait until it watches; no guest may be quiesced before. Raises BackupError."""
        deadline = time.monotonic() + START_LIMIT
        while not self._watches():
            check_stop()
            if time.monotonic() > deadline:
                message = f"the watchdog process did not start within {START_LIMIT:.0f} s"
                raise BackupError(message, "without it a guest could stay frozen; is this node overloaded?")
            time.sleep(READY_POLL)

    def _watches(self) -> bool:
        with self._lock:
            self._revive()
            return self._present.watches

    def check(self) -> None:
        """Restart it if it was killed, replace it if it is stopped. For the guard, CHECKS times a second.

        Checks are counted, not seconds, as this process may have been stopped too, or got no processor.
        """
        with self._lock:
            self._revive()
            self._present.silent_checks += 1
            if self._present.silent_checks > CHECKS * (SILENCE if self._present.watches else START_LIMIT):
                self._restart(STOPPED)

    def _revive(self) -> None:
        """Restart it if it was killed; it never ends by itself while a run is active."""
        if not self._present.lives() and time.monotonic() >= self._present.restart_at:
            self._restart(KILLED if self._present.watches else NEVER_READY)

    def _restart(self, why: str) -> None:
        before = self._present
        try:
            life = self._started(before.process)
        except BackupError:
            return  # the next check retries
        before.life.close()
        pause = FIRST_RESTART if before.watches else min(2 * before.restart_pause, LAST_RESTART)
        self._present = _Started(life, before.process, pause)
        self._reporter.message(Level.WARNING, "", why)

    def close(self) -> None:
        """Let it end, and wait for that, unless it goes on thawing guests that are still frozen or paused."""
        left = [note.name for note in FreezeNotes(self._settings.runtime_dir).all()]
        if left:
            self._require_sign_of_life()
        self._theirs.close()
        self.lifeline.close()
        if left:
            names = ", ".join(left)
            text = f"{names} may still be frozen or paused: the watchdog keeps retrying in the background"
            self._reporter.message(Level.ERROR, "", text)
        else:
            self._wait_for_its_end()
        self._present.life.close()
        for process in self._starters:
            ended(process, START_LIMIT)  # it may be starting one for guests that are still frozen

    def _require_sign_of_life(self) -> None:
        """Replace it if it was stopped or killed just now: nobody watches it from now on."""
        with self._lock:
            present = self._present
            if present.lives() and (not present.watches or present.life.poll(SILENCE)) and present.lives():
                return
            self._restart(STOPPED)

    def _wait_for_its_end(self) -> None:
        deadline = time.monotonic() + END_LIMIT
        silent = True
        while self._present.life.poll(max(deadline - time.monotonic(), 0)):
            if not self._present.lives():
                return
            silent = False
        if silent:  # no guest is frozen or paused
            self._present.kill()

    def _started(self, replaces: Optional[ProcessId]) -> Connection:
        """Start one; return a connection that receives a message when it watches, and ends when it ends.

        As soon as it watches it kills the one that it `replaces`.
        """
        try:
            life, its_own = SPAWN.Pipe(duplex=False)
            arguments = (self._theirs, its_own, replaces, self._settings, self._reporter)
            process = SPAWN.Process(target=_detached, args=arguments, name="watchdog")
            with spawning(), its_own:
                process.start()
        except OSError as error:
            message = f"cannot start the watchdog process: {reason(error)}"
            hint = "without it a guest could stay frozen; is this node out of memory?"
            raise BackupError(message, hint) from error
        self._starters.append(process)
        return life


@contextmanager
def watched(settings: Settings, reporter: Reporter) -> Iterator[Watchdog]:
    """Run a watchdog during the block; only for the holder of the node's lock."""
    watchdog = Watchdog(settings, reporter)
    try:
        yield watchdog
    finally:
        watchdog.close()


def _detached(
    lifeline: Connection,
    life: Connection,
    replaces: Optional[ProcessId],
    settings: Settings,
    reporter: Reporter,
) -> None:
    """Watch in a detached process; `life` is open as long as it lives."""
    if os.fork() == 0:
        try:
            with bugs_reported(reporter):
                leave_resource_tracker()
            with bugs_reported(reporter):
                _watch(lifeline, settings, reporter, partial(_show_life, life, replaces))
        finally:
            os._exit(0)


def _watch(
    lifeline: Connection, settings: Settings, reporter: Reporter, show_life: Callable[[], None]
) -> None:
    """Wait for the end of all others; then thaw and resume guests by their notes, until none is left."""
    os.setsid()  # a terminal's Ctrl-C and hang-up are not for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_title("watchdog")
    newest = Newest(settings.runtime_dir)
    newest.register()
    _thread.start_new_thread(show_life, ())
    with BackgroundReporter(reporter) as aside:
        thaws = Thaws(settings, aside)
        while not _others_ended(lifeline):
            with bugs_reported(aside):
                thaws.enforce(MARGIN)
        orphans = None
        with bugs_reported(aside):  # out of processes, perhaps
            orphans = begun(partial(end_orphans, settings.runtime_dir))  # in parallel: the thaw must not wait
        thaw_own(settings, thaws, newest.is_this, aside)
        newest.unregister()
        with bugs_reported(aside):
            if orphans:
                orphans.result()
            else:
                end_orphans(settings.runtime_dir)


def _show_life(life: Connection, replaces: Optional[ProcessId]) -> None:
    """Kill the watchdog that this one replaces, if any; then give signs of life: this process's id, if known.

    It does so while the main process lives. If the kill fails, two watch once the other goes on: no harm.
    """
    if replaces:
        with suppress(OSError):
            kill(replaces)
    os.set_blocking(life.fileno(), False)  # a main process that is stopped does not read
    process = None
    with suppress(OSError):  # out of files
        process = process_id(os.getpid()) if sees_own_pids() else None
    while True:
        try:
            life.send_bytes(json.dumps(process).encode())
        except BlockingIOError:
            pass
        except OSError:  # the main process has ended, or has replaced this one
            return
        time.sleep(POLL)


def _others_ended(lifeline: Connection) -> bool:
    """Wait for the end of all others, for POLL seconds at the most; return whether they ended."""
    try:
        if lifeline.poll(POLL):
            lifeline.recv_bytes()  # nothing is ever sent
    except EOFError:
        return True
    return False
