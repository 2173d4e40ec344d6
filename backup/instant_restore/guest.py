"""The guest of an instant restore: started once, and resumed when its reads are answered again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Callable

from ..ceph.overlay_image import unused
from ..errors import BackupError, TransientError
from ..hypervisor.errors import HypervisorError
from ..hypervisor.moving_domain import RunningDisk
from ..instant.record import RecordedDisk, this_host
from ..model import Level, State
from .given import Given
from .journal import Journal

RESTARTS = 5  # of a QEMU that ends by accident, at the most
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between two attempts to resume it


@dataclass
class Guest:
    """The guest. `ready` returns whether its reads can be answered now."""

    given: Given
    journal: Journal
    ready: Callable[[], bool]
    _restarts: int = field(default=0, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)
    _resumed: float = field(default=0.0, init=False)  # when it was last resumed, in time.monotonic()
    _was_paused: bool = field(default=False, init=False)

    def start(self) -> None:
        """Let it run here, unless it does. Raises BackupError if it may run elsewhere."""
        state = self.given.moving.state()
        if state is not None and state.active:
            self._adopt()
        elif state is not None and self.journal.record.started and self.is_own():
            if self.journal.record.host != this_host() or state is State.ELSEWHERE:
                self._require_nowhere_else()
            else:  # it may have been moved, unrecorded, and started and shut down since
                self.record_moved()
            self._redefine()
            self._run(paused=False)
        else:
            self._require_nowhere_else()
            self.journal.set_host(this_host())
            # one that was killed while it defined the domain may not have written its NVRAM
            again = state is not None and self.is_own()
            self.given.domain.define_for_now(self.given.xml_now(self.journal.record), again)
            self._run(paused=False)

    def record_moved(self) -> None:
        """Record the disks that are on their restored images now. Raises BackupError."""
        disks = self.given.moving.disks()
        record = self.journal.record
        moved = {one.target for one in record.on_overlays if _is_moved(one, disks)}
        self.journal.set_moved(moved)

    def attend(self) -> None:
        """Resume it if a read failed that would succeed now; start it again if its QEMU was killed.

        Raises BackupError, not for a libvirt that is being restarted.
        """
        try:
            self._attend()
        except HypervisorError as error:
            if not error.transient:
                raise

    def start_for_copy(self) -> bool:
        """Let its QEMU run, if somebody has shut the guest off with paused processors: return whether so.

        One whose memory libvirt has saved goes on: to start its QEMU takes that memory out of the file.
        """
        moving = self.given.moving
        state = moving.state()
        if state is None or state.active:
            return False
        saved = state is State.SAVED
        paused = not (saved or moving.ended_by_accident())
        self.record_moved()
        self._redefine()
        if saved:
            text = "the guest was saved (virsh managedsave): it is resumed, to be moved to its images"
            self.given.report(Level.WARNING, text)
        self._run(paused)
        return paused

    def require_resumed(self, limit: float = 10.0) -> None:
        """Wait until no failed read pauses it any more; a warning if that takes longer."""
        deadline = time.monotonic() + limit
        while self.given.moving.paused_by_error():
            if time.monotonic() > deadline:
                text = f"a failed read or write still pauses the guest: virsh resume {self.given.domain.name}"
                self.given.report(Level.WARNING, text)
                return
            with suppress(HypervisorError):
                self.given.moving.resume()
            time.sleep(FIRST_PAUSE)

    def _attend(self) -> None:
        moving = self.given.moving
        state = moving.state()
        if state is State.PAUSED and moving.paused_by_error():
            self._resume()
        elif state is not None and not state.active and moving.ended_by_accident():
            self._restart()
        elif state is State.RUNNING and self._was_paused and time.monotonic() > self._resumed + 1:
            self._was_paused, self._pause = False, FIRST_PAUSE
            self.given.report(Level.INFO, "the guest runs again")

    def _resume(self) -> None:
        """Resume it, less and less often: the first attempts only connect it to the server again."""
        if not self._was_paused:
            self._was_paused = True
            text = "a read or write of the guest failed: it is paused until that succeeds"
            self.given.report(Level.WARNING, text)
        if self.ready() and time.monotonic() > self._resumed + self._pause:
            self._resumed, self._pause = time.monotonic(), min(1.5 * self._pause, LONGEST_PAUSE)
            self.given.moving.resume()

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > RESTARTS:
            hint = f"see /var/log/libvirt/qemu/{self.given.domain.name}.log; the same command continues"
            raise BackupError(f"the guest's QEMU has ended {RESTARTS} times", hint)
        self.given.report(Level.WARNING, "the guest's QEMU has ended by accident: it is started again")
        self.record_moved()
        self._redefine()
        self._run(paused=False)

    def _adopt(self) -> None:
        """Continue with a guest that runs here."""
        if not self.is_own():
            domain = self.given.domain
            message = f"the domain {domain.name} that runs here has other disks"
            raise BackupError(message, f"virsh domblklist {domain.name}; --abort ends the instant restore")
        self.journal.set_host(this_host())
        self.record_moved()
        moving, disks = self.given.moving, self.given.moving.disks()
        for disk in self.journal.record.on_overlays:
            if disks[disk.attached].copied:
                moving.cancel_copy(disk.attached)
        if self.journal.record.pivoting:
            if moving.state() is State.PAUSED:
                moving.resume()
            self.journal.set_pivoting(False)
        self.given.report(Level.INFO, "the guest runs here already")

    def is_here(self) -> bool:
        """Return whether the guest's domain is defined here, running or not."""
        return self.given.moving.state() is not None and self.is_own()

    def is_own(self) -> bool:
        """Return whether the domain that is defined here has the overlays, or the images, of the record."""
        disks = self.given.moving.disks()
        return all(
            not disk.attached or _is_moved(disk, disks) or _image(disks, disk) == str(disk.place.overlay)
            for disk in self.journal.record.disks
        )

    def _require_nowhere_else(self) -> None:
        """Raise BackupError if a QEMU has the guest's disks open."""
        given, record = self.given, self.journal.record
        moved = [disk.place for disk in record.disks if disk.attached and disk.moved]
        images = [*(disk.place.overlay for disk in record.on_overlays), *moved]
        if used := unused(given.cluster, images, given.stop.check):
            message = f"the guest runs elsewhere, on {record.host} perhaps: it has {'; '.join(used)}"
            hint = "repeat the command on that node; Ceph forgets a node that is dead after half a minute"
            raise TransientError(message, hint)

    def _redefine(self) -> None:
        """Let the definition fit the record, whatever libvirt had stored of it when its node ended."""
        self.given.domain.hypervisor.define(self.given.xml_now(self.journal.record))
        # after that: what is defined on the recorded host is never older than the record
        self.journal.set_host(this_host())

    def _run(self, paused: bool) -> None:
        """Start it."""
        self.journal.set_started()
        if paused:  # recorded before: if this process ends then, the next one resumes it
            self.journal.set_pivoting(True)
        self.given.domain.hypervisor.start(self.given.domain.uuid, paused)
        if not paused:
            self.given.report(Level.INFO, "started; its images are restored while it runs")


def _image(disks: Mapping[str, RunningDisk], disk: RecordedDisk) -> str:
    return disks[disk.attached].image if disk.attached in disks else ""


def _is_moved(disk: RecordedDisk, disks: Mapping[str, RunningDisk]) -> bool:
    """Return whether a disk is on its restored image. One that is not restored yet is an older one's."""
    return bool(disk.filled) and _image(disks, disk) == disk.image and not disks[disk.attached].copied
