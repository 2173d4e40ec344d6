"""Removes restore points: first what makes them count, then the files on which no other one builds.

A file on which one other builds takes up what that has of its own, and then takes its place: so the other one
is complete at any moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from backup.errors import BackupError
from backup.stored import PointId

from ..own_points.in_use import PointInUse
from ..own_points.run_names import point_name
from .chain import dependants, header
from .domain_directory import DomainDirectory
from .errors import named_errors
from .locks import exclusive
from .names import ENTRY
from .room import require_room

CheckStop = Callable[[], None]

IN_USE = "another process using the image"  # as QEMU's programs refuse a file that a guest has open


def discard(root: Path, point: PointId, check_stop: CheckStop) -> None:
    """Remove a restore point if it is incomplete. Raises PointInUse, BackupError."""
    _remove(root, point, False, check_stop)


def withdraw(root: Path, point: PointId, check_stop: CheckStop) -> None:
    """Remove a restore point; success if it is gone. Raises PointInUse, BackupError."""
    _remove(root, point, True, check_stop)


def _remove(root: Path, point: PointId, complete_too: bool, check_stop: CheckStop) -> None:
    check_stop()
    domain, name = DomainDirectory(root, point.uuid), point_name(point)
    if name in domain.partials():
        domain.remove_partial(name)
    there = name in domain.points()
    if not domain.exists() or (there and domain.counts(name) and not complete_too):
        return
    try:
        with exclusive(domain) as lock:
            if there:
                domain.remove_manifest(name)
                _tidy(domain, check_stop)
            domain.remove_if_empty(lock)
    except PointInUse:
        if there:
            raise


def _tidy(domain: DomainDirectory, check_stop: CheckStop) -> None:
    """Remove the files of points that do not count, newest first; fold those that one other builds on."""
    left = [name for name in domain.points() if not domain.counts(name)]
    for name in reversed(left):
        for path in domain.images(domain.final(name)):
            check_stop()
            if not dependants(domain).get(path):
                domain.remove_file(path)
    for name in left:
        for path in domain.images(domain.final(name)):
            check_stop()
            above = dependants(domain).get(path, [])
            if len(above) == 1 and above[0].parent.name in domain.points():
                _fold(domain, path, above[0], check_stop)
        if domain.images(domain.final(name)):
            domain.remove_file(domain.final(name) / ENTRY)  # several build on it: it is not listed any more
        else:
            domain.remove_point(name)


def _fold(domain: DomainDirectory, base: Path, top: Path, check_stop: CheckStop) -> None:
    """Make one file of two that build on each other, in the place of the upper one."""
    with named_errors("read", top):
        require_room(domain.path, top.stat().st_blocks * 512, f"folding {top} into {base}")
    try:
        domain.commit_into(base, top, header(top).size, check_stop)
    except BackupError as error:
        if IN_USE not in error.message:
            raise
        message = f"{base} or what builds on it is in use by another program: {error.message}"
        raise PointInUse(message, f"see `fuser -v {base}`, and guests on overlays of it") from error
    domain.replace(base, top)
