"""Thawing and resuming the guests of all notes whose owners cannot do it, with retries until they run."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Callable

from ..errors import BackupError, DomainGone, reason
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import running_at
from ..hypervisor.errors import HypervisorError
from ..model import Level
from ..protocols import Reporter
from ..settings import Settings
from ..system.process_group import ProcessId, kill
from ..system.time_limit import awaited, begun
from .freeze_notes import FreezeNotes, Method, Note
from .thaw import CHECK_AGAIN, CannotThawHere, Thaw, gone_while_quiesced

FIRST_PAUSE = 0.2  # seconds until a failed thaw or resume is retried; doubled up to the last
LAST_PAUSE = 30.0
HANG_LIMIT = 2.0  # seconds to wait for one attempt; one that takes longer goes on in its thread
REPORT_AGAIN = 600.0  # seconds after which a guest that cannot be thawed is reported again


@dataclass
class _Attempts:
    """The attempts to thaw or resume one note's guest. `under_way` is the one that has not ended yet.

    `answered`: see Thaw.
    """

    due: float = 0.0
    pause: float = FIRST_PAUSE
    error: BackupError | None = None
    reported: float = float("-inf")
    under_way: Future[bool] | None = None
    answered: float = math.inf


@dataclass
class Thaws:
    """Thaws and resumes guests whose notes' owners cannot do it any more. Threads may share it.

    Failures are retried after growing pauses; a call that hangs delays no other guest. `killed` are the UUIDs
    of the domains whose owners were killed.
    """

    settings: Settings
    reporter: Reporter
    killed: set[str] = field(default_factory=set)
    _attempts: dict[tuple[str, float], _Attempts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.notes = FreezeNotes(self.settings.runtime_dir)

    def round(self, chosen: Callable[[Note], bool]) -> int:
        """Try each chosen note that is due; return how many of them are left."""
        left = 0
        for note in self._chosen(chosen):
            with self._lock:
                left += not self._attempted(note)
        return left

    def _chosen(self, chosen: Callable[[Note], bool]) -> Sequence[Note]:
        """Return the chosen notes, and those of which a bug keeps that from being known."""
        found = []
        for note in self.notes.all():
            try:
                if chosen(note):
                    found.append(note)
            except Exception:  # it must not keep the others from being thawed, nor this one
                self._report_bug(note, self._attempts_of(note))
                found.append(note)
        return found

    def _report_bug(self, note: Note, attempts: _Attempts) -> None:
        if time.monotonic() <= attempts.reported + REPORT_AGAIN:
            return
        attempts.reported = time.monotonic()
        self.reporter.message(Level.ERROR, note.name, f"cannot thaw or resume: {traceback.format_exc()}")

    def enforce(self, margin: float = 0) -> None:
        """Thaw and resume guests that are overdue by so many seconds, or whose owner is dead.

        An owner that has not begun to do so is stopped, or hangs: it is killed first, as anything that it
        has yet to do, such as the freeze itself, comes too late.
        """

        def is_due(note: Note) -> bool:
            overdue = note.overdue(margin)
            if overdue and note.owner and note.owned and not note.releasing:
                self._kill(note, note.owner)
            return overdue or not note.owned

        self.round(is_due)

    def _kill(self, note: Note, owner: ProcessId) -> None:
        seconds = self.settings.freeze_timeout
        text = f"its worker did not thaw or resume it within {seconds} s (FREEZE_TIMEOUT): "
        self.killed.add(note.uuid)
        try:
            kill(owner)
        except OSError as error:  # its guest is thawed all the same
            text += f"cannot kill process {owner.pid}: {reason(error)}"
        else:
            text += "killed"
        self.reporter.message(Level.ERROR, note.name, text)

    def thaw_within(
        self, chosen: Callable[[Note], bool], seconds: float, check_stop: Callable[[], None] = lambda: None
    ) -> int:
        """Retry the chosen notes for so many seconds; return how many are left, each reported as an error."""
        deadline = time.monotonic() + seconds
        while left := self.round(chosen):
            if time.monotonic() > deadline:
                break
            check_stop()
            time.sleep(FIRST_PAUSE)
        if left:
            with self._lock:
                for note in self._chosen(chosen):
                    self._report(note, self._attempts_of(note))
        return left

    def _attempts_of(self, note: Note) -> _Attempts:
        return self._attempts.setdefault((note.uuid, note.possible), _Attempts())

    def _attempted(self, note: Note) -> bool:
        """Try one, if it is due; return whether its guest runs and the note is gone."""
        attempts, limit = self._attempts_of(note), 0.0  # one that hangs is waited for only once
        try:
            if attempts.under_way is None:
                limit = HANG_LIMIT
                if time.monotonic() < attempts.due:
                    return False
                attempts.under_way = begun(partial(self._thaw, note, attempts))
            over = awaited(attempts.under_way, limit)
        except BackupError as error:
            self._record_failure(note, attempts, error)
            over = False
        except Exception as error:  # a bug, or no memory or thread, must not end the guard or the watchdog
            under_way = attempts.under_way
            if isinstance(error, TimeoutError) and under_way and not under_way.done():
                return False  # it goes on
            self._report_bug(note, attempts)
            self._retry_later(attempts)
            over = False
        else:
            attempts.due = time.monotonic() + CHECK_AGAIN
        attempts.under_way = None
        return over

    def _retry_later(self, attempts: _Attempts) -> None:
        attempts.due = time.monotonic() + attempts.pause
        attempts.pause = min(2 * attempts.pause, LAST_PAUSE)

    def _record_failure(self, note: Note, attempts: _Attempts, error: BackupError) -> None:
        attempts.error = error
        self._retry_later(attempts)
        if attempts.pause == LAST_PAUSE and time.monotonic() > attempts.reported + REPORT_AGAIN:
            self._report(note, attempts)

    def _thaw(self, note: Note, attempts: _Attempts) -> bool:
        """Try once; return whether the guest runs, and the note is gone. Raises BackupError."""
        try:
            own = Hypervisor(note.uri, self.settings.libvirt_timeout)
        except HypervisorError as error:
            return self._thaw_elsewhere(note, error)
        with own as hypervisor:
            thaw = Thaw(note, hypervisor, self.settings, answered=attempts.answered)
            level = Level.WARNING
            done, state = ("thawed", "frozen") if note.method is Method.FREEZE else ("resumed", "paused")
            text = f"{done}: an interrupted backup had left the guest {state}"
            try:
                over = thaw.attempt()
            except CannotThawHere as error:
                over, level, text = True, Level.ERROR, str(error)
            except BackupError as error:
                raise thaw.failure(error) from error
            attempts.answered = thaw.answered
            if thaw.gone:
                text = gone_while_quiesced(note)
        if over:
            self.notes.remove_unless_newer(note)
            self.reporter.message(level, note.name, text)
        return over

    def _thaw_elsewhere(self, note: Note, unreachable: HypervisorError) -> bool:
        """Try once where the domain runs now, as its own libvirt cannot be reached; return True.

        Such as when its node has died, and the guest was started on another one. Raises BackupError, that it
        cannot be reached if the domain runs nowhere else: it may still run there.
        """
        others = [uri for uri in self.settings.libvirt_uris if uri != note.uri]
        try:
            with running_at(note.uuid, others, self.settings.libvirt_timeout) as (hypervisor, domain):
                Thaw(note, hypervisor, self.settings).undo_elsewhere(domain, unreachable)
                place = hypervisor.uri
        except DomainGone:
            raise unreachable from None
        self.notes.remove_unless_newer(note)
        text = f"the guest runs at {place} now, not frozen or paused; {note.uri} cannot be reached"
        self.reporter.message(Level.WARNING, note.name, text)
        return True

    def _report(self, note: Note, attempts: _Attempts) -> None:
        if attempts.error:
            attempts.reported = time.monotonic()
            self.reporter.message(Level.ERROR, note.name, str(attempts.error))


def thaw_guests(
    settings: Settings,
    reporter: Reporter,
    uuid: str | None = None,
    seconds: float | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> int:
    """Thaw or resume the guests that interrupted runs left quiesced: all, or the one with this UUID.

    Retries for so many seconds, or FREEZE_TIMEOUT. Only for the holder of the node's lock, and for domains
    without a worker: no process may be quiescing them on purpose. Returns how many that failed for.
    """
    thaws = Thaws(settings, reporter)
    unreadable = thaws.notes.unreadable() if uuid is None else ()
    for error in unreadable:  # until it is removed, its domain is backed up without a freeze
        reporter.message(Level.ERROR, "", str(error))
    if seconds is None:
        seconds = settings.freeze_timeout + 2 * CHECK_AGAIN  # by then the calls of a killed worker are over
    left = thaws.thaw_within(lambda note: uuid in (None, note.uuid), seconds, check_stop)
    return left + len(unreadable)
