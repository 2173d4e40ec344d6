"""Thawing and resuming guests, an attempt at a time, until they provably run or nobody can help them."""

from __future__ import annotations

import _thread
import os
import threading
import time
import traceback
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Optional

from .. import PROGRAM
from ..errors import BackupError, DomainGone
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import located
from ..hypervisor.errors import HypervisorError
from ..model import Domain, Level, State
from ..protocols import Reporter
from ..settings import Settings
from ..system.process_group import ProcessId, kill, process_id, sees_own_pids
from ..system.time_limit import awaited, carry_out
from .freeze_notes import Hold, Journal, Note

AGENT_SHARE = 1 / 3  # of FREEZE_TIMEOUT: what the guest agent gets for an answer
AGENT_JOB = 30  # seconds that libvirt lets a call wait for another one of the same agent (qemu_domainjob.c)
FIRST_PAUSE = 0.2  # seconds until a thaw or resume that failed is tried again; doubled up to the last
LAST_PAUSE = 30.0
LOOK_AGAIN = 1.0  # seconds between two looks for a freeze that may still be on its way
HANGS = 2.0  # seconds after which an attempt is left to itself, as others wait
REPORT_AGAIN = 600.0  # seconds after which a guest that can't be thawed is reported again


class BeyondHelp(BackupError):
    """Nothing on this node can thaw or resume the guest any more."""


def _own() -> Optional[ProcessId]:
    """Give what this process is as an owner of notes."""
    return process_id(os.getpid()) if sees_own_pids() else None


def agent_timeout(settings: Settings) -> int:
    """Give the seconds that the guest agent gets for an answer."""
    return max(1, int(AGENT_SHARE * settings.freeze_timeout))


@dataclass
class Thaw:
    """Thaws or resumes one domain. `thawed` counts the file systems that were frozen until then.

    `doubtful`: the call of this very process for the freeze or pause had no answer, and may come after this.
    `gone`: no libvirt that is known has the domain any more.
    """

    note: Note
    hypervisor: Hypervisor
    settings: Settings
    doubtful: bool = False
    thawed: int = 0
    gone: bool = False

    def attempt(self) -> bool:
        """Try once; tell whether it is over, and the note can go.

        It is not where a freeze or pause of another process, which may have been killed as it asked libvirt,
        may still be on its way. Raises HypervisorError where another attempt may succeed, BeyondHelp where
        none on this node will, another BackupError while the domain can't be thawed.
        """
        uuid = self.note.uuid
        try:
            state = self.hypervisor.state(uuid)
            if state is not State.ELSEWHERE:
                return self._released(self.hypervisor, state, self._is_anew())
        except DomainGone:
            state = State.SHUT_OFF
        with suppress(DomainGone):
            return self._released_elsewhere()
        if state is State.ELSEWHERE:
            message = "the guest migrated to another node while it stood still"
            raise BeyondHelp(message, f"on that node: virsh domfsthaw {uuid}; virsh resume {uuid}")
        self.gone = True
        return True

    def failure(self, error: BackupError) -> BackupError:
        """Give the error of an attempt as what it means for the guest."""
        if not isinstance(error, HypervisorError):
            return error
        frozen = self.note.hold is Hold.FREEZE
        state, command = ("frozen", "domfsthaw") if frozen else ("paused", "resume")
        hint = f"virsh {command} {self.note.uuid}"
        return BackupError(f"the guest may still be {state}: {error.message}", hint)

    def _released_elsewhere(self) -> bool:
        """Do it at another libvirt of LIBVIRT_URI where the domain runs by now. Raises DomainGone."""
        others = [uri for uri in self.settings.libvirt_uris if uri != self.hypervisor.uri]
        if not others:
            raise DomainGone("no other libvirt is known")
        with located(self.note.uuid, others, self.settings.libvirt_timeout) as (hypervisor, domain):
            return self._released(hypervisor, domain.state, anew=False)

    def _is_anew(self) -> bool:
        """Tell whether the domain was started since: the note's owner has never frozen or paused it then."""
        instance = self.hypervisor.instance(self.note.uuid)
        return -1 not in (instance, self.note.instance) and instance != self.note.instance

    def _released(self, hypervisor: Hypervisor, state: State, anew: bool) -> bool:
        if state in (State.SHUT_OFF, State.CRASHED):
            return True
        if state is State.SAVED:
            message = "the guest was saved while it stood still, and will come back like that"
            raise BackupError(message, f"start it, then {PROGRAM} cleanup")
        if self.note.hold is Hold.PAUSE:
            if not anew:
                hypervisor.resume(self._domain)
            return anew or state is State.PAUSED or self._certain
        try:
            self.thawed += hypervisor.thaw(self._domain, agent_timeout(self.settings))
        except HypervisorError:
            if anew:  # but saved while it was frozen, and restored, it can be thawed
                return True
            raise
        return anew or self.thawed > 0 or self._certain

    @property
    def _certain(self) -> bool:
        """Whether what was to be undone has happened or never will.

        Its owner's calls that were answered are over, another process's may still wait in libvirt.
        """
        ours = self.note.owner is not None and self.note.owner == _own()
        return (ours and not self.doubtful) or time.monotonic() > self.note.possible

    @property
    def _domain(self) -> Domain:
        return Domain(self.note.uuid, self.note.name, State.RUNNING, (), uri=self.note.uri)


@dataclass
class _Attempts:
    """What became of the attempts at one note's guest. `under_way` is the one that has not ended yet."""

    due: float = 0.0
    pause: float = FIRST_PAUSE
    error: BackupError | None = None
    reported: float = float("-inf")
    under_way: Future[bool] | None = None


@dataclass
class Thaws:
    """Thaws and resumes guests whose notes' owners can't any more. Threads may share it.

    What can't be done at once is tried again after a pause that grows; a call that hangs keeps no other guest
    waiting. `killed` are the uuids of the domains that owners were killed for.
    """

    settings: Settings
    reporter: Reporter
    killed: set[str] = field(default_factory=set)
    _attempts: dict[tuple[str, float], _Attempts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.journal = Journal(self.settings.runtime_dir)

    def round(self, chosen: Callable[[Note], bool]) -> int:
        """Try those of the chosen notes whose time has come; give how many of them are left."""
        left = 0
        for note in [note for note in self.journal.notes() if chosen(note)]:
            with self._lock:
                left += not self._tried(note)
        return left

    def enforce(self, margin: float = 0) -> None:
        """Thaw and resume what is overdue by so many seconds, and what nobody owns any more.

        An owner that has not even begun to do so is stopped, or hangs: it is killed first, as whatever it has
        still to do, such as the freeze itself, comes too late.
        """

        def is_ours(note: Note) -> bool:
            overdue = note.overdue(margin)
            if overdue and note.owner and note.owned and not note.releasing:
                self.killed.add(note.uuid)
                kill(note.owner)
                seconds = self.settings.freeze_timeout
                text = f"its worker did not thaw or resume it within {seconds} s (FREEZE_TIMEOUT): killed"
                self.reporter.message(Level.ERROR, note.name, text)
            return overdue or not note.owned

        self.round(is_ours)

    def settle(
        self, chosen: Callable[[Note], bool], seconds: float, check_stop: Callable[[], None] = lambda: None
    ) -> int:
        """Try the chosen notes for so many seconds; give how many are left, each with an error reported."""
        deadline = time.monotonic() + seconds
        while left := self.round(chosen):
            if time.monotonic() > deadline:
                break
            check_stop()
            time.sleep(FIRST_PAUSE)
        if left:
            with self._lock:
                for note in filter(chosen, self.journal.notes()):
                    self._report(note, self._of(note))
        return left

    def _of(self, note: Note) -> _Attempts:
        return self._attempts.setdefault((note.uuid, note.possible), _Attempts())

    def _tried(self, note: Note) -> bool:
        """Try one, if its time has come; tell whether it is dealt with."""
        attempts, patience = self._of(note), 0.0  # one that hangs has been waited for once
        if attempts.under_way is None:
            patience = HANGS
            if time.monotonic() < attempts.due:
                return False
            attempts.under_way = Future()
            _thread.start_new_thread(carry_out, (partial(self._dealt_with, note), attempts.under_way))
        try:
            over = awaited(attempts.under_way, patience)
        except BackupError as error:
            self._note_failure(note, attempts, error)
            over = False
        except TimeoutError:
            return False  # it goes on
        except Exception:  # a bug, or no memory, must not end the guard or the watchdog
            self.reporter.message(Level.ERROR, note.name, f"cannot thaw or resume: {traceback.format_exc()}")
            attempts.due, over = time.monotonic() + LAST_PAUSE, False
        else:
            attempts.due = time.monotonic() + LOOK_AGAIN
        attempts.under_way = None
        return over

    def _note_failure(self, note: Note, attempts: _Attempts, error: BackupError) -> None:
        attempts.error = error
        attempts.due = time.monotonic() + attempts.pause
        attempts.pause = min(2 * attempts.pause, LAST_PAUSE)
        if attempts.pause == LAST_PAUSE and time.monotonic() > attempts.reported + REPORT_AGAIN:
            self._report(note, attempts)

    def _dealt_with(self, note: Note) -> bool:
        """Try once; tell whether it is over, and the note gone. Raises BackupError."""
        with Hypervisor(note.uri, self.settings.libvirt_timeout) as hypervisor:
            thaw = Thaw(note, hypervisor, self.settings)
            level = Level.WARNING
            text = f"let go: a backup that was killed had left a {note.hold.value} behind"
            try:
                over = thaw.attempt()
            except BeyondHelp as error:
                over, level, text = True, Level.ERROR, str(error)
            except BackupError as error:
                raise thaw.failure(error) from error
            if thaw.gone:
                hint = f"if it migrated meanwhile, on its node: virsh domfsthaw {note.uuid}"
                text = f"the domain is gone that a backup may have left frozen or paused (hint: {hint})"
        if over:
            self.journal.erase_note(note)
            self.reporter.message(level, note.name, text)
        return over

    def _report(self, note: Note, attempts: _Attempts) -> None:
        if attempts.error:
            attempts.reported = time.monotonic()
            self.reporter.message(Level.ERROR, note.name, str(attempts.error))


def let_go_noted(
    settings: Settings,
    reporter: Reporter,
    uuid: str | None = None,
    seconds: float | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> int:
    """Thaw or resume the domains that were noted and not let go: all, or the one with this uuid.

    Tries for so many seconds, or FREEZE_TIMEOUT. Only for the holder of the node's lock, about domains that
    no worker is at: nobody else can be quiescing them on purpose. Returns how many that failed for.
    """
    thaws = Thaws(settings, reporter)
    unreadable = thaws.journal.unreadable() if uuid is None else ()
    for error in unreadable:  # its domain's own backup fails over it, as long as the note is there
        reporter.message(Level.ERROR, "", str(error))
    if seconds is None:
        seconds = settings.freeze_timeout + 2 * LOOK_AGAIN  # what a killed worker had begun is over then
    left = thaws.settle(lambda note: uuid in (None, note.uuid), seconds, check_stop)
    return left + len(unreadable)
