"""backup/restore/restorer.py: the restore point is found, and what it lacks is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Callable

from backup.errors import ConfigError
from backup.model import Definition, Disk, Level
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.stored import Packed, SavedImage, StoredPoint
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, UUID, domain, foreign_disk, rbd_disk, restore_point, settings
from ..stored_points import HeldPoints

SHARED = Disk("filesystem:data", "/srv/a", skipped="no RBD image (virtiofs file system)")
IMAGE = SavedImage("vda", "vms/web", MIB, 4096, 0, 0.0, "web", LAYOUT)


class Held(HeldPoints):
    """Holds a restore point of a domain with data outside of its images."""

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        of = domain(disks=(rbd_disk(), foreign_disk("vdb"), SHARED))
        definition = Definition("<domain/>", not_saved=("the memory that virsh managedsave saved",))
        return manifest.pack(replace(restore_point(of), definition=definition), [IMAGE], {})


def test_a_repository_that_does_not_answer_once_is_asked_again(tmp_path: Path) -> None:
    order = RestoreOrder("web", to_file=str(tmp_path / "vda.raw"))
    output = HeldPoints({UUID: "web"}, broken=1)
    (restored,) = Restorer(order, settings(), output, Recorder(), StopRequest()).restore()
    assert restored.saved.target == "vda"


def test_a_restore_reports_what_was_skipped_in_the_backup_and_why() -> None:
    recorder, output = Recorder(), Held({UUID: "web"})
    restorer = Restorer(RestoreOrder("web"), settings(), output, recorder, StopRequest())
    restorer.saved(output.restore_points()[0])
    assert recorder.told(Level.WARNING) == [
        "skipped in the backup: disk vdb (/srv/x.qcow2): no RBD image (file); "
        "filesystem:data (/srv/a): no RBD image (virtiofs file system)",
        "not in the backup: the memory that virsh managedsave saved",
    ]


def test_clones_need_restore_points_that_are_snapshots() -> None:
    restorer = Restorer(
        RestoreOrder("web", clone=True), settings(), HeldPoints({UUID: "web"}), Recorder(), StopRequest()
    )
    with raises("--clone needs restore points that are snapshots of images", ConfigError):
        restorer.restore()


def test_a_clone_is_no_file() -> None:
    with raises("--clone and --to-file exclude each other: a clone is an image", ConfigError):
        RestoreOrder("web", clone=True, to_file="/tmp/x").require_consistent()
