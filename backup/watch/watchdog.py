"""The watchdog: a process that outlives all others of the run, and thaws guests if they were killed."""

from __future__ import annotations

import _thread
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Callable, Optional

from ..errors import BackupError, reason
from ..model import Level
from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes, Note
from ..quiesce.thaw_rounds import Thaws
from ..settings import Settings
from ..system.child_records import end_orphans
from ..system.process import SPAWN, signals_blocked
from ..system.process_end import ended
from ..system.process_group import ProcessId, kill, process_id, sees_own_pids
from ..system.process_title import set_title
from ..system.time_limit import CheckStop
from .background_reporter import BackgroundReporter, bugs_reported
from .newest import Newest
from .node_lock import as_watchdog
from .other_groups import FindSettings, found_in_time, no_others, with_notes

POLL = 1.0  # seconds between two checks of the notes while the run is alive
MARGIN = 2.0  # seconds by which it acts later than the main process, which may be stopped
FIRST_PAUSE = 0.05  # seconds until it checks again whether it may thaw the rest; doubled up to the last
LAST_PAUSE = 15.0
START_LIMIT = 60.0  # seconds that it may take to start, on a busy node
FIRST_RESTART = 0.5  # seconds between two restarts of one that ends at once; doubled up to LAST_PAUSE
READY_POLL = 0.1  # seconds between two checks whether it has started
END_LIMIT = 10.0  # seconds that the main process waits for its end
SILENCE = 6.0  # seconds without a sign of life, which it gives every POLL seconds: it was stopped
CHECKS = 2  # of the guard in a second


KILLED = "the watchdog was killed and is restarted: without it a guest could stay frozen"
STOPPED = "the watchdog gave no sign of life and is replaced: without it a guest could stay frozen"
NEVER_READY = "the watchdog ended before it was ready and is restarted: without it a guest could stay frozen"


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
        self._ready = threading.Event()
        self._watched = False  # whether the present one has reported that it watches
        self._process: Optional[ProcessId] = None  # the present one, if known
        self._silent_checks = 0
        self._restart_pause, self._restart_at = FIRST_RESTART, 0.0
        self._lock = threading.Lock()
        self._life = self._started()

    def wait_until_ready(self, check_stop: Callable[[], None]) -> None:
        """Wait until it watches; no guest may be quiesced before. Raises BackupError."""
        deadline = time.monotonic() + START_LIMIT
        while not self._ready.wait(READY_POLL):
            check_stop()
            self._revive()
            if time.monotonic() > deadline:
                message = f"the watchdog process did not start within {START_LIMIT:.0f} s"
                raise BackupError(message, "without it a guest could stay frozen; is this node overloaded?")

    def check(self) -> None:
        """Restart it if it was killed, replace it if it is stopped. For the guard, CHECKS times a second.

        Checks are counted, not seconds, as this process may have been stopped too, or got no processor.
        """
        self._revive()
        with self._lock:
            self._silent_checks += 1
            if self._silent_checks > CHECKS * (SILENCE if self._watched else START_LIMIT):
                self._restart(STOPPED)

    def _revive(self) -> None:
        """Restart it if it was killed; it never ends by itself while a run is active."""
        with self._lock:
            if not self._lives() and time.monotonic() >= self._restart_at:
                self._restart(KILLED if self._watched else NEVER_READY)

    def _lives(self) -> bool:
        """Receive its signs of life, the first of which is that it watches; return False if it has ended."""
        try:
            while self._life.poll():
                process = json.loads(self._life.recv_bytes())
                self._process = ProcessId(*process) if process else None
                self._ready.set()
                self._watched = True
                self._silent_checks = 0
                self._restart_pause = FIRST_RESTART
        except (EOFError, OSError):
            return False
        return True

    def _restart(self, why: str) -> None:
        try:
            started = self._started()
        except BackupError:
            return  # the next check retries
        self._kill()
        self._life.close()
        self._life = started
        self._reporter.message(Level.WARNING, "", why)
        self._watched = False
        self._silent_checks = 0
        self._restart_at = time.monotonic() + self._restart_pause
        self._restart_pause = min(2 * self._restart_pause, LAST_PAUSE)

    def _kill(self) -> None:
        """Kill one that is stopped. If that fails, two watch once it goes on, which does no harm."""
        if self._process:
            with suppress(OSError):
                kill(self._process)
        self._process = None

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
        self._life.close()
        for process in self._starters:
            ended(process, START_LIMIT)  # it may be starting one for guests that are still frozen

    def _require_sign_of_life(self) -> None:
        """Replace it if it was stopped or killed just now: nobody watches it from now on."""
        self._revive()
        with self._lock:
            if self._watched and not self._life.poll(SILENCE):
                self._restart(STOPPED)

    def _wait_for_its_end(self) -> None:
        deadline = time.monotonic() + END_LIMIT
        silent = True
        while self._life.poll(max(deadline - time.monotonic(), 0)):
            if not self._lives():
                return
            silent = False
        if silent:  # no guest is frozen or paused
            self._kill()

    def _started(self) -> Connection:
        """Start one; return a connection that receives a message when it watches, and ends when it ends."""
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
    """Run a watchdog during the block; only for the holder of the node's lock."""
    watchdog = Watchdog(settings, reporter)
    try:
        yield watchdog
    finally:
        watchdog.close()


def _detached(lifeline: Connection, life: Connection, settings: Settings, reporter: Reporter) -> None:
    """Watch in a detached process; `life` is open as long as it lives."""
    if os.fork() == 0:
        try:
            with bugs_reported(reporter):
                _watch(lifeline, life, settings, reporter)
        finally:
            os._exit(0)


def _watch(lifeline: Connection, life: Connection, settings: Settings, reporter: Reporter) -> None:
    """Wait for the end of all others; then thaw and resume guests by their notes, until none is left."""
    os.setsid()  # a terminal's Ctrl-C and hang-up are not for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    set_title("watchdog")
    newest = Newest(settings.runtime_dir)
    newest.register()
    _thread.start_new_thread(_show_life, (life,))
    with BackgroundReporter(reporter) as aside:
        thaws = Thaws(settings, aside)
        while not _others_ended(lifeline):
            with bugs_reported(aside):
                thaws.enforce(MARGIN)
        orphans = threading.Thread(target=end_orphans, args=(settings.runtime_dir,), name="orphans")
        orphans.start()  # in parallel: the thaw must not wait
        _thaw_all({settings.runtime_dir: thaws}, partial(_with_own_notes, settings), newest.is_this, aside)
        newest.unregister()
        orphans.join()


def _show_life(life: Connection) -> None:
    """Give signs of life as long as the main process lives: this process's id, if known."""
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


def thaw_all(
    settings: Settings, reporter: Reporter, check_stop: CheckStop, find: FindSettings = no_others
) -> None:
    """Thaw and resume the guests of all notes, of all groups, until none is left.

    Those of a group only while no run of it is active. A watchdog may do the same at the same time. Raises
    the reason to stop.
    """

    def goes_on() -> bool:
        check_stop()
        return True

    thaws: dict[str, Thaws] = {}
    found = found_in_time(find, check_stop)
    _round(thaws, _with_own_notes(settings), reporter)  # before anybody else's settings are executed
    _thaw_all(thaws, lambda: _with_readable_notes(with_notes(settings, found)), goes_on, reporter)


def _with_own_notes(settings: Settings) -> Sequence[Settings]:
    return _with_readable_notes([settings])


def _with_readable_notes(groups: Sequence[Settings]) -> Sequence[Settings]:
    return [one for one in groups if FreezeNotes(one.runtime_dir).all()]


def _thaw_all(
    thaws: dict[str, Thaws],
    with_notes: Callable[[], Sequence[Settings]],
    goes_on: Callable[[], bool],
    reporter: Reporter,
) -> None:
    """Thaw the guests of all notes of these groups while no run of theirs is active, as long as it goes on.

    `thaws` are those that have begun, by RUNTIME_DIR. The lock may still be held by a process that is being
    killed: its files are closed one after the other.
    """
    pause = FIRST_PAUSE
    while (left := with_notes()) and goes_on():
        _round(thaws, left, reporter)
        _pause(pause, with_notes, goes_on)
        pause = min(2 * pause, LAST_PAUSE)


def _round(thaws: dict[str, Thaws], groups: Sequence[Settings], reporter: Reporter) -> None:
    """Try once to thaw the guests of each of these groups, unless a run of it is active."""
    for one in groups:
        begun = thaws.setdefault(one.runtime_dir, Thaws(one, reporter))
        with bugs_reported(reporter), as_watchdog(one.runtime_dir) as locked:
            if locked:
                begun.round(_any)


def _pause(seconds: float, with_notes: Callable[[], object], goes_on: Callable[[], bool]) -> None:
    """Wait, but not longer than there are notes to deal with."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not (with_notes() and goes_on()):
            return
        time.sleep(min(left, POLL))


def _any(_note: Note) -> bool:
    return True
