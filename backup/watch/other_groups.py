"""Guests that interrupted runs of other groups left frozen or paused: any run of the node thaws them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Callable

from ..errors import reason
from ..groups import directories
from ..model import Level
from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes
from ..quiesce.thaw import CHECK_AGAIN
from ..quiesce.thaw_rounds import thaw_guests
from ..settings import Settings
from ..system.time_limit import CheckStop, within
from .node_lock import as_watchdog

# Enough to see that a guest runs. One that cannot be thawed is left to the thaw service, and its own group.
THAW_LIMIT = 2 * CHECK_AGAIN  # seconds
FIND_LIMIT = 10.0  # seconds that the settings files of other groups get: they may run anything

# Returns the settings of the node's groups, and those without a group, as far as they can be read.
FindSettings = Callable[[], Sequence[Settings]]


def no_others() -> Sequence[Settings]:
    """Satisfy FindSettings where there are no settings files."""
    return ()


def with_notes(own: Settings, find: FindSettings) -> Sequence[Settings]:
    """Return the settings of each group of this RUNTIME_DIR that has notes, with `own` first if it has.

    `find`, which executes whatever is in settings files, is called only if another group has notes. A group
    whose settings are gone, or cannot be read, gets ours.
    """
    of_own = [own] if _has_notes(own) else []
    others: Sequence[Settings] = ()
    with suppress(OSError):  # our own are thawed all the same
        others = [
            replace(own, group=group, runtime_dir=path)
            for group, path in directories(own.node_dir).items()
            if path != own.runtime_dir
        ]
    if not (others := [one for one in others if _has_notes(one)]):
        return of_own
    found = {one.runtime_dir: one for one in find()}
    return [*of_own, *(found.get(one.runtime_dir, one) for one in others)]


def found_in_time(find: FindSettings, check_stop: CheckStop) -> FindSettings:
    """Return what calls `find` once, and finds no settings if that hangs: no guest stays frozen for it.

    It raises what `check_stop` raises.
    """

    @cache
    def found() -> Sequence[Settings]:
        try:
            return within(FIND_LIMIT, find, check_stop)
        except TimeoutError:
            return ()

    return found


def _has_notes(settings: Settings) -> bool:
    notes = FreezeNotes(settings.runtime_dir)
    return bool(notes.all() or notes.unreadable())


def thaw_other_groups(own: Settings, find: FindSettings, reporter: Reporter, check_stop: CheckStop) -> None:
    """Thaw or resume what interrupted runs of other groups left quiesced; what fails is only logged.

    It takes THAW_LIMIT: a guest of another group that cannot be thawed costs ours nothing. A run of the group
    that begins meanwhile waits, and one that is active thaws its guests itself. Raises the reason to stop.
    """
    for other in with_notes(own, found_in_time(find, check_stop)):
        if other.runtime_dir == own.runtime_dir:
            continue
        of = f"group {other.group}" if other.group else "settings without a group"
        try:
            with as_watchdog(other.runtime_dir) as locked:
                if locked:
                    text = f"thawing guests that a run of {of} may have left frozen"
                    reporter.message(Level.WARNING, "", text)
                    thaw_guests(other, reporter, seconds=THAW_LIMIT, check_stop=check_stop)
        except OSError as error:  # which must not cost the own run
            text = f"cannot thaw guests that a run of {of} may have left frozen: {reason(error)}"
            reporter.message(Level.ERROR, "", f"{text} (hint: see {other.runtime_dir})")


APART_HINT = "set the same RUNTIME_DIR in all settings files of this node"


def apart(other: Settings, own: Settings) -> str:
    """Return what is wrong with two settings that have different RUNTIME_DIRs."""
    name = f"group {other.group} has" if other.group else "the settings without a group have"
    return (
        f"{name} another RUNTIME_DIR, {other.node_dir} instead of {own.node_dir}:"
        " both may freeze a domain at the same time"
    )
