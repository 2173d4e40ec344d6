"""A run of another group that has the same domain frozen or paused: this one waits for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..errors import TransientError
from ..settings import Settings
from ..system.time_limit import CheckStop, never_stop
from .freeze_notes import FreezeNotes

MARGIN = 5.0  # seconds by which the thaw of another group may be late
POLL = 0.2  # seconds


@dataclass(frozen=True)
class OtherGroup:
    """Waits for other groups; `notes` are the own ones. `check_stop` raises the reason to stop."""

    notes: FreezeNotes
    settings: Settings
    check_stop: CheckStop = never_stop

    def seconds_left(self, uuid: str) -> float:
        """Return for how long a live run of another group may still quiesce the domain, 0 if none does.

        Raises BackupError.
        """
        note = self.notes.live_of_other_group(uuid)
        return max(note.until - time.monotonic(), 0) if note else 0

    def wait(self, uuid: str) -> None:
        """Wait while a run of another group quiesces the domain, by its own deadline; then for a thaw.

        It saves other images of the domain: the same ones have the domain's lock. Whose run was killed is
        waited for FREEZE_TIMEOUT: its note may stay. Raises TransientError if a live run still quiesces it,
        BackupError, and the reason to stop.
        """
        limit = self.seconds_left(uuid) + self.settings.freeze_timeout + MARGIN
        deadline = time.monotonic() + limit
        while self.notes.of_other_group(uuid):
            if time.monotonic() > deadline:
                self.require_none_live(uuid)
                return
            self.check_stop()
            time.sleep(POLL)

    def require_none_live(self, uuid: str) -> None:
        """Raise TransientError if a live run of another group quiesces the domain: it also undoes that."""
        if self.notes.live_of_other_group(uuid):
            message = "a backup of another group has the guest frozen or paused, and is still active"
            raise TransientError(message, "a retry waits for it")
