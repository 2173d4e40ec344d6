"""backup/restore_point/manifest.py: the content of a restore point, as a tar file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from backup.errors import BackupError
from backup.model import ClusterAddress, Definition, Disk, NodeFile
from backup.restore_point import manifest as module
from backup.restore_point.checksums import Checksums
from backup.restore_point.manifest import unpack
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, SnapshotId
from backup.system.spool import whole

from ..samples import LAYOUT, RUN, UUID, domain, rbd_disk, restore_point

SOURCE = SnapshotId("fsid", "image-id", 7)
SAVED = SavedImage("vda", "vms/web-root", 4096, 1024, 512, 0.5, "0123abcd", LAYOUT, 512, SOURCE)
DISKS = (rbd_disk(), Disk("sda", "", skipped="a cdrom without a medium"))
POINT = restore_point(domain(disks=DISKS))


def pack(point: RestorePoint, images: Sequence[SavedImage], checksums: Mapping[str, Checksums]) -> bytes:
    return whole(module.pack(point, images, checksums))


def unpacked(packed: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files: dict[str, Any] = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in files.items()}


def test_it_has_what_was_saved_from_where_and_how() -> None:
    manifest = json.loads(unpacked(pack(POINT, [SAVED], {}))["manifest.json"])
    assert manifest["format"] == 1
    assert (manifest["run"], manifest["host"]) == (RUN, "node1")
    assert manifest["taken"] == "2024-02-03T04:05:06.789000+00:00"
    assert manifest["domain"] == {"name": "web", "uuid": UUID, "state": "running"}
    assert (manifest["consistency"], manifest["frozen_seconds"]) == ("filesystem", 0.123)
    assert manifest["images"] == [
        {
            "target": "vda",
            "image": "vms/web-root",
            "size": 4096,
            "data_bytes": 1024,
            "stored_bytes": 512,
            "seconds": 0.5,
            "restore_id": "0123abcd",
            "layout": {
                "object_size": 4 << 20,
                "features": ["layering", "exclusive-lock"],
                "stripe_unit": 4 << 20,
                "stripe_count": 1,
                "data_pool": "",
            },
            "read_bytes": 512,
            "source": {"cluster": "fsid", "image": "image-id", "snapshot": 7},
            "segment_size": 0,
            "full_read": "",
        }
    ]


def test_it_has_the_skipped_disks_and_their_reasons() -> None:
    manifest = json.loads(unpacked(pack(POINT, [SAVED], {}))["manifest.json"])
    assert manifest["not_covered"] == [{"target": "sda", "source": "", "reason": "a cdrom without a medium"}]


def not_covered(disks: Sequence[Disk], *saved: SavedImage) -> dict[str, str]:
    """Return what the manifest says of the disks that these images do not cover."""
    point = restore_point(domain(disks=disks))
    manifest = json.loads(unpacked(pack(point, saved, {}))["manifest.json"])
    return {one["target"]: one["reason"] for one in manifest["not_covered"]}


def test_a_disk_with_the_same_image_as_another_names_that_disk() -> None:
    disks = (rbd_disk(), rbd_disk("vdb", "vms/data"), rbd_disk("vdc"), rbd_disk("vdd", "vms/data"))
    data = replace(SAVED, target="vdb", image="vms/data")
    assert not_covered(disks, SAVED, data) == {"vdc": "the same image as vda", "vdd": "the same image as vdb"}


def test_images_of_one_name_in_two_clusters_are_both_saved() -> None:
    other = rbd_disk("vdb", "vms/web-root", address=ClusterAddress(("ceph2",)))
    assert not_covered((rbd_disk(), other), SAVED, replace(SAVED, target="vdb")) == {}


def test_the_definition_is_in_separate_files() -> None:
    definition = Definition("<domain>größe</domain>", "<domain id='1'/>", "/nvram/web.fd", b"\0\1nvram")
    files = unpacked(pack(replace(POINT, definition=definition), [SAVED], {}))
    assert json.loads(files.pop("manifest.json"))["nvram_path"] == "/nvram/web.fd"
    assert files == {
        "domain.xml": "<domain>größe</domain>".encode(),
        "domain-live.xml": b"<domain id='1'/>",
        "nvram.fd": b"\0\1nvram",
    }


def test_a_domain_that_was_shut_off_has_no_live_definition() -> None:
    files = unpacked(pack(replace(POINT, definition=Definition("<domain/>")), [SAVED], {}))
    assert set(files) == {"manifest.json", "domain.xml"}


def test_the_definition_may_hold_passwords_and_is_readable_by_its_owner_only() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(POINT, [SAVED], {}))) as tar:
        assert {member.mode for member in tar} == {0o600}
        assert {member.mtime for member in tar} == {POINT.taken.timestamp()}


def test_what_was_packed_is_read_back() -> None:
    files = (
        NodeFile("kernel", "/srv/kernel", b"\1kernel", 0o644, "root:root"),
        NodeFile("rom", "/srv/rom", b""),
    )
    nvram = ("/nvram/web", b"\0variables")
    definition = Definition("<domain/>", "<domain id='1'/>", *nvram, autostart=True, files=files)
    point = replace(POINT, definition=definition)
    checksums = Checksums()
    checksums.add(0, b"data")
    images = (SAVED, replace(SAVED, target="vdb.backing1"))
    saved = unpack(pack(point, images, {"vda": checksums, "vdb.backing1": Checksums()}))
    assert {target: [*Checksums(one)] for target, one in saved.checksums.items()} == {
        "vda": [*checksums],
        "vdb.backing1": [],
    }
    assert replace(saved, checksums={}) == SavedDomain(
        PointId(RUN, UUID),
        "web",
        POINT.taken,
        POINT.consistency,
        images,
        (DISKS[1],),
        definition,
        {},
    )


@pytest.mark.parametrize("autostart", [None, False, True])
def test_the_domain_s_autostart_and_what_only_libvirt_has_of_it_are_read_back(autostart: bool | None) -> None:
    besides = ("the memory that virsh managedsave saved",)
    definition = Definition("<domain/>", autostart=autostart, not_saved=besides)
    assert unpack(pack(replace(POINT, definition=definition), [SAVED], {})).definition == definition


def test_an_older_version_s_manifest_does_not_know_the_domain_s_autostart() -> None:
    definition = Definition("<domain/>", autostart=True, not_saved=("x",))
    packed = pack(replace(POINT, definition=definition), [SAVED], {})
    older = packed.replace(b'"autostart"', b'"AUTOSTART"').replace(b'"not_saved"', b'"NOT_SAVED"')
    assert unpack(older).definition == Definition("<domain/>")


def test_a_file_of_the_node_is_packed_below_its_path_with_its_mode_and_owner() -> None:
    file = NodeFile("TPM state", "/srv/tpm/state", b"state", 0o640, "tss:root")
    packed = pack(replace(POINT, definition=Definition("<domain/>", files=(file,))), [SAVED], {})
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.getmember("files/srv/tpm/state")
    assert (member.mode, member.uname, member.gname) == (0o640, "tss", "root")
    older = packed.replace(b'"files"', b'"FILES"')
    assert unpack(older).definition == Definition("<domain/>")


def test_an_older_version_s_manifest_has_no_checksums() -> None:
    older = pack(POINT, [SAVED], {}).replace(b'"checksums"', b'"CHECKSUMS"')
    assert unpack(older).checksums == {}


@pytest.mark.parametrize("packed", [b"", b"garbage" * 1000, pack(POINT, [SAVED], {})[:700]])
def test_what_is_no_manifest_is_an_error_with_a_hint(packed: bytes) -> None:
    with pytest.raises(BackupError, match="is damaged") as caught:
        unpack(packed)
    assert "restore-points" in caught.value.hint


@pytest.mark.parametrize("left", [600, 1024, 2000])
def test_a_manifest_whose_checksums_are_cut_off_is_damaged(left: int) -> None:
    checksums = Checksums()
    for number in range(100):
        checksums.add(number << 22, b"data")
    packed = pack(POINT, [SAVED], {"vda": checksums})
    start = packed.index(b"vda.xxh3")
    with pytest.raises(BackupError, match="is damaged"):
        unpack(packed[: start + left])
    assert [*Checksums(unpack(packed).checksums["vda"])] == [*checksums]


def test_a_manifest_of_another_format_is_refused() -> None:
    other = pack(POINT, [SAVED], {}).replace(b'"format": 1', b'"format": 2')
    with pytest.raises(BackupError, match="format 2, this version reads format 1"):
        unpack(other)
