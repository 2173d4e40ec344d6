"""Moves a guest from its overlays to its restored images, while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import BackupError, TransientError
from ..hypervisor.errors import HypervisorError
from ..hypervisor.instant_xml import destination
from ..hypervisor.moving_domain import RunningDisk, is_over
from ..instant.record import RecordedDisk
from ..job_result import Phase
from ..model import Level, State
from ..text import duration_text
from .given import Given
from .guest import Guest
from .journal import Journal

POLL = 0.1  # seconds between two checks of a copy
ATTEMPTS = 5
PAUSE = 2.0  # seconds between two attempts
AWAY_LIMIT = 120.0  # seconds in which attempts of which libvirt answers none count as one
SETTLE_LIMIT = 60.0  # seconds for libvirt to end a copy


class CopyFailed(TransientError):
    """libvirt has ended a copy, or not moved a disk: QEMU could not write it, or has ended itself."""


@dataclass
class Move:
    """Copies what the guest has written into the restored images, and lets it have these."""

    given: Given
    journal: Journal
    guest: Guest
    _attempts: int = field(default=0, init=False)
    # When libvirt did not answer, the first and the last time, in time.monotonic().
    _away: tuple[float, float] = field(default=(-math.inf, -math.inf), init=False)
    _was_off: bool = field(default=False, init=False)  # somebody has shut the guest off: it stays so

    def move(self) -> None:
        """Move all disks. Raises BackupError; disks that are moved by then stay so, and the guest runs."""
        self.given.reporter.phase(self.given.saved.name, Phase.MOVE)
        if self.journal.record.on_overlays:
            self.given.report(Level.INFO, "all images are restored; moving the guest to them")
        while self.journal.record.on_overlays or self.journal.record.pivoting:
            self.given.stop.check()
            try:
                self.guest.record_moved()  # by an attempt that could not record it any more
                self._move(self.journal.record.on_overlays)
                self._end_pivot()
            except (HypervisorError, CopyFailed) as error:
                if not self._is_still_away(error):
                    self._attempts += 1
                    over = isinstance(error, HypervisorError) and is_over(error)
                    if self._attempts >= ATTEMPTS or not (error.transient or over):
                        raise
                    self.given.report(Level.WARNING, f"{error}; the guest is moved again")
                self._wait(PAUSE)

    def _is_still_away(self, error: BackupError) -> bool:
        """Return whether this is a further attempt that libvirt does not answer, soon after the first one.

        It is not counted: libvirt is being restarted perhaps.
        """
        if not (isinstance(error, HypervisorError) and error.transient):
            return False
        now, (first, last) = time.monotonic(), self._away
        goes_on = now < last + AWAY_LIMIT
        self._away = (first if goes_on else now, now)
        return goes_on and now < first + AWAY_LIMIT

    def _move(self, disks: Sequence[RecordedDisk]) -> None:
        if not disks:
            return
        moving = self.given.moving
        self._was_off = self.guest.start_for_copy() or self._was_off
        for disk in disks:
            if self._now(disk).copied:  # of an attempt that failed
                moving.cancel_copy(disk.attached)
            moving.start_copy(disk.attached, destination(self.given.xml, disk.attached))
        while not self._ready(disks):
            self.given.stop.check()
            self.guest.attend()
            time.sleep(POLL)
        self._pivot(disks)

    def _ready(self, disks: Sequence[RecordedDisk]) -> bool:
        """Return whether all copies have everything. Raises CopyFailed."""
        moving, ready = self.given.moving, True
        for disk in disks:
            now = self._now(disk)
            done, size = moving.copied_bytes(disk.attached)
            if size:
                self.given.reporter.progress(self.given.saved.name, disk.target, done, size)
            if not now.copied:
                hint = f"see /var/log/libvirt/qemu/{self.given.domain.name}.log; is the pool full?"
                raise CopyFailed(f"the copy of {disk.attached} into {disk.image} has ended", hint)
            ready = ready and now.ready
        return ready

    def _now(self, disk: RecordedDisk) -> RunningDisk:
        """Return the image that a disk has now. Raises BackupError if somebody has detached it."""
        if now := self.given.moving.disks().get(disk.attached):
            return now
        name = self.given.domain.name
        hint = f"attach it again, see `virsh dumpxml --inactive {name}`; then repeat the command"
        raise BackupError(f"somebody has detached {disk.attached} from the guest before it was moved", hint)

    def _pivot(self, disks: Sequence[RecordedDisk]) -> None:
        """Let the guest have its images, all at one moment.

        It is paused meanwhile: what it wrote to an image before that was recorded as moved would be lost if
        all ended now, as the overlay would count.
        """
        given, moving = self.given, self.given.moving
        given.must_end.set()
        try:
            given.stop.check()
            self._notice_resumed()
            runs = not self._was_off and (moving.state() is State.RUNNING or self.journal.record.pivoting)
            if runs:
                self.journal.set_pivoting(True)
            began = time.monotonic()
            if runs:
                moving.pause()
            failed = self._pivot_paused(disks)
            self._end_pivot()
            if runs:
                seconds = time.monotonic() - began
                given.report(Level.INFO, f"the guest was paused for {duration_text(seconds)}")
        finally:
            given.must_end.clear()
        if not self._was_off:
            self.guest.require_resumed()
        if failed and self.journal.record.on_overlays:
            raise CopyFailed(failed.message, failed.hint) from failed

    def _end_pivot(self) -> None:
        """Let a guest that was paused run, or be shut off, as before."""
        if not self.journal.record.pivoting:
            return
        self._notice_resumed()
        if not self._was_off:
            if self.given.moving.state() is not State.RUNNING:
                self.given.moving.resume()
        elif not self.journal.record.on_overlays:
            self.given.domain.hypervisor.destroy(self.given.domain.uuid)
        self.journal.set_pivoting(self._was_off and bool(self.journal.record.on_overlays))

    def _notice_resumed(self) -> None:
        """Have a guest that was shut off run on, if somebody has resumed it since it was started paused."""
        if self._was_off and self.given.moving.state() is State.RUNNING:
            self._was_off = False
            self.given.report(Level.WARNING, "somebody has resumed the guest: it is moved while it runs")

    def _pivot_paused(self, disks: Sequence[RecordedDisk]) -> HypervisorError | None:
        """Move the disks, and record it; return an error that left some of them where they were.

        Raises BackupError if it is not certain which are moved: the guest must not run then.
        """
        failed = None
        try:
            for disk in disks:
                self.given.moving.pivot(disk.attached)
        except HypervisorError as error:
            failed = error
        try:
            self._settle(disks)
            self.guest.record_moved()
        except BackupError:
            if failed:
                self.given.report(Level.WARNING, str(failed))
            text = "the guest stays paused, as it cannot be recorded where its disks are"
            self.given.report(Level.ERROR, f"{text}: repeat the command; do not resume the guest by hand")
            raise
        return failed

    def _settle(self, disks: Sequence[RecordedDisk]) -> None:
        """Have no copy under way any more. Raises HypervisorError, CopyFailed if one does not end."""
        deadline = time.monotonic() + SETTLE_LIMIT
        while left := [one for one in disks if self._now(one).copied]:
            if time.monotonic() > deadline:
                raise CopyFailed(
                    f"the copy of {left[0].attached} does not end", "see the journal of libvirtd"
                )
            with suppress(HypervisorError):  # it is just ending
                self.given.moving.cancel_copy(left[0].attached)
            time.sleep(POLL)

    def _wait(self, seconds: float) -> None:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            self.given.stop.check()
            self.guest.attend()
            time.sleep(POLL)
