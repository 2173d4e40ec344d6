"""What is wrong at the end of a run: guests that it, or an earlier one, may have left frozen or paused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from ..errors import BackupError
from ..model import Level
from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes, Method
from ..quiesce.thaw import AGENT_JOB, CHECK_AGAIN, agent_timeout
from ..quiesce.thaw_rounds import thaw_guests
from ..settings import Settings
from ..system.stop_request import StopRequest


def still_quiesced(settings: Settings, reporter: Reporter, stop: StopRequest) -> Sequence[str]:
    """Return an error for each guest that may still be frozen or paused, and report it.

    Only for the holder of the node's lock, without workers. They are thawed and resumed until the calls of
    killed workers cannot be carried out any more, but once only after a request to stop.
    """
    notes = FreezeNotes(settings.runtime_dir)
    if found := notes.all():
        longest = AGENT_JOB + agent_timeout(settings)
        left = max(note.possible for note in found) - time.monotonic()
        with suppress(BackupError):  # the reason to stop: what is left is reported all the same
            seconds = max(0.0, min(left, longest)) + 2 * CHECK_AGAIN
            thaw_guests(settings, reporter, seconds=seconds, check_stop=stop.check)
    errors = []
    for note in notes.all():
        frozen = note.method is Method.FREEZE
        state, command = ("frozen", "domfsthaw") if frozen else ("paused", "resume")
        message, hint = f"the guest may still be {state} after the run", f"virsh {command} {note.uuid}"
        reporter.message(Level.ERROR, note.name, f"{message} (hint: {hint})")
        errors.append(f"{note.name}: {message}")
    for error in notes.unreadable():
        reporter.message(Level.ERROR, "", str(error))
        errors.append(error.message)
    return errors
