"""Guests that interrupted runs of other groups left frozen or paused: any run of the node thaws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Callable

from ..errors import reason
from ..groups import directories
from ..model import Level
from ..protocols import Reporter
from ..quiesce.freeze_notes import FreezeNotes
from ..quiesce.thaw_rounds import thaw_guests
from ..settings import Settings
from .node_lock import as_watchdog

# Returns the settings of the node's groups, and those without a group, as far as they can be read.
FindSettings = Callable[[], Sequence[Settings]]


def no_others() -> Sequence[Settings]:
    """Satisfy FindSettings where there are no settings files."""
    return ()


def with_notes(own: Settings, find: FindSettings) -> Sequence[Settings]:
    """Return the settings of each group that has notes, with `own` first if it has.

    A group whose settings are gone, or cannot be read, gets those of the first with its RUNTIME_DIR.
    """
    return [one for one in _all(own, find) if _has_notes(one)]


def _all(own: Settings, find: FindSettings) -> Iterator[Settings]:
    known = [own, *(one for one in find() if one.runtime_dir != own.runtime_dir)]
    yield from known
    read = {one.runtime_dir for one in known}
    for one in known:
        with suppress(OSError):  # those that are known are thawed all the same
            for group, path in directories(one.node_dir).items():
                if path not in read:
                    read.add(path)
                    yield replace(one, group=group, runtime_dir=path)


def _has_notes(settings: Settings) -> bool:
    notes = FreezeNotes(settings.runtime_dir)
    return bool(notes.all() or notes.unreadable())


def thaw_other_groups(
    own: Settings,
    find: FindSettings,
    reporter: Reporter,
    check_stop: Callable[[], None],
    seconds: float | None = None,
) -> int:
    """Thaw or resume what interrupted runs of other groups left quiesced; return how many that failed for.

    A run of the group that begins meanwhile waits, and one that is active thaws its guests itself. `seconds`
    as in `thaw_guests`. Raises the reason to stop.
    """
    failed = 0
    for other in with_notes(own, find):
        if other.runtime_dir == own.runtime_dir:
            continue
        of = f"group {other.group}" if other.group else "settings without a group"
        try:
            with as_watchdog(other.runtime_dir) as locked:
                if locked:
                    text = f"thawing guests that a run of {of} may have left frozen"
                    reporter.message(Level.WARNING, "", text)
                    failed += thaw_guests(other, reporter, seconds=seconds, check_stop=check_stop)
        except OSError as error:  # which must not cost the own run
            failed += 1
            text = f"cannot thaw guests that a run of {of} may have left frozen: {reason(error)}"
            reporter.message(Level.ERROR, "", f"{text} (hint: see {other.runtime_dir})")
    return failed


def report_apart(own: Settings, find: FindSettings, reporter: Reporter) -> None:
    """Warn of other groups with another RUNTIME_DIR: nothing keeps them from quiescing a domain of ours."""
    for other in find():
        if Path(other.node_dir) != Path(own.node_dir):
            reporter.message(Level.WARNING, "", f"{apart(other, own)} (hint: {APART_HINT})")


APART_HINT = "set the same RUNTIME_DIR in all settings files of this node"


def apart(other: Settings, own: Settings) -> str:
    """Return what is wrong with two settings that have different RUNTIME_DIRs."""
    name = f"group {other.group} has" if other.group else "the settings without a group have"
    return (
        f"{name} another RUNTIME_DIR, {other.node_dir} instead of {own.node_dir}:"
        " both may freeze a domain at the same time"
    )
