"""Thaws and resumes the guests of all notes, until none is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Callable

from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes, Note
from ..quiesce.thaw_rounds import Thaws
from ..settings import Settings
from ..system.time_limit import CheckStop
from .background_reporter import bugs_reported
from .node_lock import as_watchdog
from .other_groups import FindSettings, found_in_time, no_others, with_notes

FIRST_PAUSE = 0.05  # seconds until it is checked again whether the rest may be thawed; doubled up to the last
LAST_PAUSE = 15.0
POLL = 1.0  # seconds between two checks within a pause whether there is still something to thaw


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
    _round(thaws, _with_readable_notes([settings]), reporter)  # before anybody else's settings are executed
    _thaw_all(thaws, lambda: _with_readable_notes(with_notes(settings, found)), goes_on, reporter)


def thaw_own(settings: Settings, thaws: Thaws, goes_on: Callable[[], bool], reporter: Reporter) -> None:
    """Thaw and resume the guests of all notes of one group, until none is left, as long as it goes on.

    A bug, or a node that is out of memory or files, does not end it.
    """
    begun, pause = {settings.runtime_dir: thaws}, FIRST_PAUSE
    while True:
        with bugs_reported(reporter):
            if goes_on():
                _thaw_all(begun, lambda: _with_readable_notes([settings]), goes_on, reporter)
            return
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


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
