"""Ends an instant restore: complete, or aborted."""

from __future__ import annotations

from dataclasses import replace

from ..ceph.cluster import Cluster
from ..ceph.image_removal import ImageRemoval
from ..ceph.new_image import RESTORING, undo_replacement
from ..ceph.overlay_image import image_id, remove_overlay, unused
from ..command import COMMAND
from ..errors import BackupError, TransientError
from ..instant import record as records
from ..instant.record import Record, RecordedDisk, Stage, this_host
from ..model import Image, Level, State
from .filling import new_image
from .given import Given
from .guest import Guest
from .journal import Journal
from .preparation import discard_unused


def finish(given: Given, journal: Journal) -> None:
    """Define the domain as a plain restore does, and remove the overlays. Raises BackupError."""
    given.domain.hypervisor.define(given.xml)
    given.domain.set_autostart()
    removal = ImageRemoval(given.cluster, given.reporter, given.stop)
    for disk in journal.record.disks:
        removal.remove(_unfinished(disk))  # a replaced image, if a process was killed while it removed that
        new_image(given, disk.target).remove_replaced()
    _remove_overlays(given, journal.record)
    records.remove(given.cluster, journal.record)
    given.report(Level.INFO, "runs on its restored images alone: the instant restore is complete")


def is_over(cluster: Cluster, record: Record) -> bool:
    """Return whether it is complete, but for a record that a killed process could not remove any more."""
    restored = record.started and all(disk.filled for disk in record.disks)
    if not restored or record.on_overlays or record.pivoting or not record.overlays:
        return False
    return not any(image_id(cluster, image) for image in record.overlays.values())


def require_under_way(given: Given, record: Record) -> None:
    """Raise BackupError, and remove the record, if it is all that is left of a complete instant restore."""
    if is_over(given.cluster, record):
        records.remove(given.cluster, record)
        message = f"the {record.title} was complete already: only its record was left, which is removed now"
        raise BackupError(message, "the same command again restores the domain once more")


def abort(given: Given, journal: Journal, discard: bool) -> None:
    """Shut the guest off, as a power cut would. `discard`: remove all that the instant restore has made.

    Raises BackupError; TransientError if the guest runs on another node.
    """
    if journal.record.stage is Stage.PREPARING:
        discard_unused(given, journal.record)
        given.report(Level.INFO, "the instant restore is aborted: the guest had not been started")
        return
    _shut_off(given, journal)
    if discard:
        _discard(given, journal)
        given.report(Level.INFO, "the instant restore is aborted, and all that it has made is removed")
        return
    journal.change(lambda record: replace(record, stage=Stage.ABORTED, pivoting=False))
    for text in _ways(given, journal.record):
        given.report(Level.INFO, text)


def _shut_off(given: Given, journal: Journal) -> None:
    guest = Guest(given, journal, lambda: False)
    state = given.moving.state() if guest.is_here() else None
    if state is not None and state.active:
        guest.record_moved()
        given.domain.hypervisor.destroy(given.domain.uuid)
        return
    # What is defined here, and does not run, may be older than what another node has done since.
    if state in (State.SHUT_OFF, State.SAVED) and journal.record.host == this_host():
        guest.record_moved()
    record = journal.record
    images = [*record.overlays.values(), *(one.place for one in record.disks if one.attached and one.filled)]
    if used := unused(given.cluster, images, given.stop.check):
        message = f"the guest runs elsewhere, on {record.host} perhaps: it has {'; '.join(used)}"
        raise TransientError(message, "repeat the command on that node")


def _discard(given: Given, journal: Journal) -> None:
    record = journal.record
    if Guest(given, journal, lambda: False).is_here():
        given.moving.undefine()
    removal = ImageRemoval(given.cluster, given.reporter, given.stop)
    for one in record.disks:
        complete = one.filled and image_id(given.cluster, one.place) == one.filled
        for image in [_unfinished(one), *([one.place] if complete else [])]:
            unused(given.cluster, [image], given.stop.check)
            removal.remove(image)
        undo_replacement(given.cluster, one.place)
    _remove_overlays(given, record)
    records.remove(given.cluster, record)


def _unfinished(disk: RecordedDisk) -> Image:
    return replace(disk.place, name=disk.place.name + RESTORING)


def _remove_overlays(given: Given, record: Record) -> None:
    """Remove them, the first image's last: by it the record is found."""
    for image in reversed(list(record.overlays.values())):
        remove_overlay(given.cluster, image, given.reporter, given.stop)


def _ways(given: Given, record: Record) -> list[str]:
    """Return how to get at what the guest has written, as texts."""
    again = f"the same command without --abort starts the guest again and continues ({record.progress})"
    texts = [f"the instant restore is aborted, the guest is shut off: {again}"]
    for disk in record.disks:
        if disk.attached and disk.moved:
            texts.append(f"{disk.attached}: all that the guest has written is in {disk.image}")
        elif disk.attached:
            overlay, below = disk.place.overlay, disk.image
            below += "" if disk.filled else ", which is not restored yet"
            text = f"{disk.attached}: what the guest has written since the restore point is in {overlay}"
            text += f", a qcow2 image over {below}; by hand: `qemu-img commit rbd:{overlay}`"
            texts.append(text)
    texts.append(f"to drop that: `{COMMAND} restore ... --instant --abort --discard`")
    return texts
