"""backup/selection.py: which disks are backed up, and which of them fail the domain if skipped."""

from __future__ import annotations

from typing import Any

import pytest

from backup.errors import BackupError
from backup.model import Disk, Domain, Gap, Override
from backup.selection import choose, effective, require_complete, select_disks

from .raising import raises
from .samples import broken_disk, domain, foreign_disk, rbd_disk, settings

ROOT, SCRATCH = rbd_disk("vda", "vms/web-root"), rbd_disk("vdb", "ssd/scratch/web-tmp")
CDROM = Disk("sda", "", skipped="a cdrom without a medium")


def with_disks(*disks: Disk, exclude: str = "") -> Domain:
    return domain(disks=disks, override=Override(exclude=tuple(exclude.split())))


def left_out(of: Domain, **constants: Any) -> dict[str, str]:
    """Return the reason for each disk that is skipped."""
    disks = select_disks(of, settings(**constants)).disks
    assert [disk.target for disk in disks] == [disk.target for disk in of.disks]
    assert all(bool(disk.image) is not bool(disk.skipped) for disk in disks)
    return {disk.target: disk.skipped for disk in disks if not disk.image}


def require(of: Domain, **constants: Any) -> None:
    """Require, as the engine does, that the domain with its selected disks can be restored completely."""
    require_complete(select_disks(of, settings(**constants)))


def test_a_disk_with_an_excluded_image_is_skipped_with_a_reason() -> None:
    web = with_disks(ROOT, SCRATCH)
    assert left_out(web, exclude_images=["ssd/scratch/*"]) == {"vdb": "in EXCLUDE_IMAGES"}
    (choice,) = choose([web], settings(exclude_images=["ssd/scratch/*"]))
    assert choice.domain == select_disks(web, settings(exclude_images=["ssd/scratch/*"]))


@pytest.mark.parametrize(
    ("exclude", "targets"),
    [
        ("vdb", {"vdb"}),
        ("vdb vda", {"vda", "vdb", "vda.backing1"}),
        ("vda", {"vda", "vda.backing1"}),
        ("vda.backing1", {"vda.backing1"}),
        ("vd vdab VDA backing1", set()),
    ],
)
def test_metadata_can_exclude_whole_disks_or_single_layers(exclude: str, targets: set[str]) -> None:
    web = with_disks(ROOT, rbd_disk("vda.backing1", "vms/base"), SCRATCH, exclude=exclude)
    assert left_out(web) == dict.fromkeys(targets, "excluded in its metadata")


def test_a_disk_excluded_in_the_metadata_leaves_no_gap() -> None:
    web = with_disks(ROOT, broken_disk("vdb"), foreign_disk("vdc"), exclude="vdb vdc")
    assert left_out(web) == dict.fromkeys(("vdb", "vdc"), "excluded in its metadata")
    assert {disk.gap for disk in select_disks(web, settings()).disks} == {Gap.NONE}
    require(web, uncovered_disks="fail")


def test_disks_without_an_rbd_image_keep_their_own_reason_whatever_the_patterns() -> None:
    web = with_disks(ROOT, foreign_disk("vdb"), CDROM)
    reasons = {"vdb": "no RBD image (file)", "sda": "a cdrom without a medium"}
    assert left_out(web, exclude_images=["/srv/*", "None"]) == reasons


def test_an_image_that_cannot_be_backed_up_fails_its_domain_with_a_hint_to_exclude_it() -> None:
    message = "disk vdb (vms/gone) cannot be backed up: a partition of an RBD image"
    with raises(message) as caught:
        require(with_disks(ROOT, broken_disk("vdb")))
    assert caught.value.hint == 'to exclude it: <backup exclude="vdb"/> in the domain\'s metadata'


def test_a_disk_without_a_source_is_reported_by_its_target() -> None:
    with raises("disk vdb cannot be backed up: invalid image name '', expected pool/image"):
        require(
            with_disks(
                ROOT, Disk("vdb", "", skipped="invalid image name '', expected pool/image", gap=Gap.BROKEN)
            )
        )


def test_a_disk_that_is_not_on_rbd_is_only_reported_unless_uncovered_disks_is_fail() -> None:
    web = with_disks(ROOT, foreign_disk("vdc"), CDROM)
    require(web)
    message = "disk vdc (/srv/x.qcow2) cannot be backed up: no RBD image (file) (UNCOVERED_DISKS)"
    with raises(message) as caught:
        require(web, uncovered_disks="fail")
    assert caught.value.hint.startswith('to exclude it: <backup exclude="vdc"/>')


def test_disks_that_need_no_backup_never_fail_a_domain() -> None:
    golden = Disk("vdd", "vms/base", skipped="runs from snapshot golden, which never changes")
    web = with_disks(ROOT, SCRATCH, CDROM, golden)
    require(web, uncovered_disks="fail", exclude_images=["ssd/*"])


def test_a_problem_of_the_domain_is_reported_before_those_of_its_disks() -> None:
    problem = BackupError("the domain's metadata has 2 elements <backup>", "see virsh metadata")
    with raises(problem.message) as caught:
        require_complete(domain(disks=[broken_disk()], problem=problem))
    assert caught.value is problem


def test_the_settings_of_a_domain_differ_in_its_own_freeze_only() -> None:
    common = settings(freeze="required", workers=7)
    assert effective(domain(), common) == common
    own = effective(domain(override=Override(freeze="never")), common)
    assert (own.freeze, own.workers) == ("never", 7)
