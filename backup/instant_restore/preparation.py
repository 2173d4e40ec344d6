"""Begins an instant restore: checks that it is possible, and makes the overlays."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ..ceph.errors import ClusterError
from ..ceph.new_image import NewImage
from ..ceph.overlay_image import create_overlay, image_id, remove_overlay
from ..errors import BackupError, ConfigError
from ..hypervisor.instant_xml import HINT, SECTOR, require_movable
from ..instant import record as records
from ..instant.record import Record, RecordedDisk, Stage, this_host
from ..model import Image
from ..restore.order import RestoreOrder
from ..restore.qemu_img import qemu_img
from ..restore.restorer import require_no_overlay, require_room
from ..restore.saved_memory import require_no_saved_memory
from ..stored import SavedImage
from ..system.stop_request import StopRequest
from ..system.undo import undone_by
from .given import Given
from .journal import Journal

HEADER_LIMIT = 4 << 20  # bytes of an empty overlay


def begun(given: Given, order: RestoreOrder) -> Journal:
    """Check everything, and make the overlays: the guest may be started. Raises BackupError."""
    attached = given.domain.attached(given.places)
    _require_possible(given, attached)
    targets = {image: target for target, image in attached.items()}
    disks = [
        RecordedDisk(target, str(image), targets.get(image, "")) for target, image in given.places.items()
    ]
    record = Record(
        given.saved.name,
        given.domain.name,
        given.domain.uuid,
        given.point.id,
        f"{given.saved.taken:{records.TIME_FORM}}",
        uuid.uuid4().hex,
        this_host(),
        tuple(sorted(disks, key=lambda disk: not disk.attached)),  # the record is found by an overlay
        no_network=order.no_network,
        options=order.options,
    )
    made: list[Image] = []
    try:
        return _prepared(given, record, made)
    except BaseException:  # whatever it was, a stop included
        with undone_by(partial(_undo, given, record, made), given.reporter, given.domain.name):
            raise


def discard_unused(given: Given, record: Record) -> None:
    """Remove what was prepared for a guest that has never run. Raises BackupError."""
    for image in reversed(list(record.overlays.values())):
        remove_overlay(given.cluster, image, given.reporter, given.stop)
    records.remove(given.cluster, record)


def _prepared(given: Given, record: Record, made: list[Image]) -> Journal:
    """Make the record and the overlays; `made` gets the overlays that may be there."""
    records.create(given.cluster, record)
    journal = Journal(given.cluster, record)
    sizes = {image.target: image for image in given.saved.images}
    for disk in record.disks:
        if disk.attached:
            given.stop.check()
            _make_overlay(given, disk.place, sizes[disk.target], made)
    journal.change(lambda one: replace(one, stage=Stage.RUNNING))
    return journal


def _undo(given: Given, record: Record, made: Sequence[Image]) -> None:
    """Remove what was made, unless another node has taken over: then that is the other one's."""
    now = records.read(given.cluster, record.first)
    if now is None or replace(now, stage=record.stage) != record:
        return
    for image in reversed(made):
        remove_overlay(given.cluster, image, given.reporter, StopRequest())  # even if a stop is why
    records.remove(given.cluster, record)


def _require_possible(given: Given, attached: Mapping[str, Image]) -> None:
    """Raise BackupError unless the domain can be restored in this way, here, to these images."""
    domain, cluster, images = given.domain, given.cluster, given.saved.images
    require_movable(given.xml, attached)
    used = [one for one in images if given.places[one.target] in attached.values()]
    if odd := [one for one in used if one.size % SECTOR or not one.size]:
        text = "has a size of {} bytes, which is no multiple of 512 bytes"
        errors = [BackupError(f"{one.target} ({one.image}) {text.format(one.size)}", HINT) for one in odd]
        raise ConfigError(errors)
    require_no_saved_memory(given.saved, given.places, given.settings, given.reporter, given.stop)
    domain.require_definable()
    require_room(cluster, images, given.places)
    require_no_overlay(cluster, given.places.values())
    for one in images:
        new = NewImage(cluster, given.places[one.target], one, given.force, given.reporter, given.stop)
        new.require_free()


def _make_overlay(given: Given, image: Image, saved: SavedImage, made: list[Image]) -> None:
    """Create the image with an empty overlay; its header names the restored image as the one below it."""
    if image_id(given.cluster, image.overlay):
        raise BackupError(f"image {image.overlay} exists", f"another restore to {image} has just begun")
    content = _empty_overlay(saved.size, f"rbd:{image}", given)
    made.append(image.overlay)
    try:
        create_overlay(given.cluster, image.overlay, content, saved.layout.data_pool)
    except ClusterError as error:
        if error.number == errno.EEXIST:  # of the other one, which was quicker
            made.remove(image.overlay)
        raise


def _empty_overlay(size: int, backing: str, given: Given) -> bytes:
    """Return an overlay of `size` bytes in which nothing is written."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "overlay.qcow2")
        # -u: what is below is not there yet
        options = ("-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing)
        qemu_img(("create", *options, os.fspath(path), str(size)), given.stop.check)
        content = path.read_bytes()
    assert len(content) <= HEADER_LIMIT, "only tables"
    return content
