"""hypervisor/mapped_device.py: block devices of the kernel's RBD driver, and the images behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.hypervisor.mapped_device import MappedImage, mapped_image
from backup.model import Image

from ..raising import raises
from ..samples import FSID

# What Linux 5.10 shows for an image in a namespace; each file ends with a newline.
ATTRIBUTES = {
    "pool": "my pool",
    "pool_ns": "tenant-a",
    "name": "web root",
    "image_id": "1f2e6b8b4567",
    "current_snap": "-",
    "cluster_fsid": FSID,
}


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """The driver's directory in /sys, with device 7 mapped."""
    return mapped(tmp_path, **ATTRIBUTES)


def mapped(devices: Path, **attributes: str) -> Path:
    (devices / "7").mkdir()
    for name, value in attributes.items():
        (devices / "7" / name).write_text(f"{value}\n")
    return devices


def test_the_image_of_a_mapped_device_comes_from_the_kernel(devices: Path) -> None:
    found = mapped_image("/dev/rbd7", local=True, devices=devices)
    assert found == MappedImage(Image("my pool", "web root", "tenant-a"), fsid=FSID)
    assert found.image.id == "1f2e6b8b4567", "so that it is found even after it was renamed"


def test_links_to_a_mapped_device_are_followed(devices: Path, tmp_path: Path) -> None:
    link = tmp_path / "web-disk"
    link.symlink_to("/dev/rbd7")
    found = mapped_image(str(link), local=True, devices=devices)
    assert found is not None
    assert str(found.image) == "my pool/tenant-a/web root"


def test_a_mapped_snapshot_is_recognized(tmp_path: Path) -> None:
    devices = mapped(tmp_path, **{**ATTRIBUTES, "current_snap": "golden"})
    found = mapped_image("/dev/rbd7", local=True, devices=devices)
    assert found is not None
    assert found.snapshot == "golden"


def test_older_kernels_without_namespaces_and_fsid_are_supported(tmp_path: Path) -> None:
    devices = mapped(tmp_path, pool="vms", name=" odd name ", current_snap="-")
    assert mapped_image("/dev/rbd7", local=True, devices=devices) == MappedImage(Image("vms", " odd name "))


def test_a_partition_is_an_error(devices: Path) -> None:
    with raises("a partition of an RBD image"):
        mapped_image("/dev/rbd7p1", local=True, devices=devices)


def test_a_device_that_is_not_mapped_is_an_error(devices: Path) -> None:
    with raises("cannot find out which image is mapped as /dev/rbd8"):
        mapped_image("/dev/rbd8", local=True, devices=devices)


def test_a_device_of_another_node_is_not_looked_up_here(devices: Path) -> None:
    with raises("cannot find out which image is mapped as /dev/rbd7"):
        mapped_image("/dev/rbd7", local=False, devices=devices)


def test_another_node_s_link_is_not_followed_here(devices: Path, tmp_path: Path) -> None:
    link = tmp_path / "disk"
    link.symlink_to("/dev/rbd7")
    assert mapped_image(str(link), local=False, devices=devices) is None


LINKS = {
    "/dev/rbd/nowhere/root": MappedImage(Image("nowhere", "root")),
    "/dev/rbd/nowhere/tenant/web root": MappedImage(Image("nowhere", "web root", "tenant")),
    "/dev/rbd/nowhere/root@golden": MappedImage(Image("nowhere", "root"), "golden"),
    "/dev/rbd/nowhere/tenant/root@a@b/c": MappedImage(Image("nowhere", "root", "tenant"), "a@b/c"),
}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("path", LINKS)
def test_a_missing_link_still_contains_the_image_name(tmp_path: Path, path: str, local: bool) -> None:
    assert mapped_image(path, local, tmp_path) == LINKS[path]


@pytest.mark.parametrize("name", ["root", "a/b/c/d", "vms/", "@golden"])
def test_a_link_without_an_image_name_is_an_error(tmp_path: Path, name: str) -> None:
    with raises(f"/dev/rbd/{name} contains no image name"):
        mapped_image(f"/dev/rbd/{name}", local=False, devices=tmp_path)


@pytest.mark.parametrize("path", ["/dev/sda", "/dev/vg/rbd7", "/dev/rbd7x", "/dev/rbd", "/dev/mapper/rbd7"])
def test_a_device_of_another_driver_is_no_rbd_device(devices: Path, path: str) -> None:
    assert mapped_image(path, local=True, devices=devices) is None
    assert mapped_image(path, local=False, devices=devices) is None


@pytest.mark.parametrize(("content", "read_only"), [("1\n", True), ("0\n", False), (None, None)])
def test_a_device_that_is_mapped_for_reading_only_is_told_from_others(
    devices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    read_only: bool | None,
) -> None:
    """The kernel watches no image that it only reads."""
    monkeypatch.setattr("backup.hypervisor.mapped_device.BLOCK_DEVICES", tmp_path / "block")
    (tmp_path / "block" / "rbd7").mkdir(parents=True)
    if content:
        (tmp_path / "block" / "rbd7" / "ro").write_text(content)
    found = mapped_image("/dev/rbd7", local=True, devices=devices)
    assert found
    assert (found.device, found.read_only) == ("/dev/rbd7", read_only)
