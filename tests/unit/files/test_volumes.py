"""backup/files/volumes.py: partitions and file systems, whatever a guest has written there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from backup.files.volumes import Volume, volumes

from ..samples import MIB
from .guest_images import SECTOR, change, ext4, partitioned, run

GPT = "label: gpt\nstart=2048, size=81920\nstart=88064, size=81920\n"
MBR = (
    "label: dos\nstart=2048, size=20480, type=83\nstart=30000, size=200000, type=5\n"
    "start=32048, size=81920, type=83\nstart=120000, size=20000, type=82\n"
)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def found(disk: Path) -> Sequence[Volume]:
    return [*volumes("vda", disk, lambda: None)]


def places(disk: Path) -> list[tuple[str, int, str]]:
    return [(one.name, one.offset // SECTOR, one.kind) for one in found(disk)]


def test_a_file_system_on_all_of_a_disk(content: Path, tmp_path: Path) -> None:
    (one,) = found(ext4(tmp_path / "image", content, "-L", "root"))
    assert (one.name, one.offset, one.length, one.kind, one.label) == ("vda", 0, 32 * MIB, "ext4", "root")
    assert one.is_ext


def test_partitions_of_gpt(content: Path, tmp_path: Path) -> None:
    image = ext4(tmp_path / "image", content)
    disk = partitioned(tmp_path / "disk", GPT, {88064: image})
    assert places(disk) == [("vda1", 2048, ""), ("vda2", 88064, "ext4")]


def test_partitions_of_mbr_also_logical_ones(content: Path, tmp_path: Path) -> None:
    image = ext4(tmp_path / "image", content)
    run("truncate", "--size=10000K", tmp_path / "swap")
    run("mkswap", tmp_path / "swap")
    disk = partitioned(tmp_path / "disk", MBR, {32048: image, 120000: tmp_path / "swap"})
    assert places(disk) == [("vda1", 2048, ""), ("vda5", 32048, "ext4"), ("vda6", 120000, "swap")]


def test_a_partition_that_ends_behind_the_disk_is_ignored(content: Path, tmp_path: Path) -> None:
    disk = partitioned(tmp_path / "disk", MBR, {})
    os.truncate(disk, 40 * MIB)
    assert places(disk) == [("vda1", 2048, "")]


def test_an_empty_disk_and_one_with_noise(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(bytes(MIB))
    (tmp_path / "noise").write_bytes(os.urandom(MIB)[:-1] + b"x")
    assert places(tmp_path / "empty") == places(tmp_path / "noise") == [("vda", 0, "")]


@pytest.mark.parametrize("separator", ["\n", "\r", "\x0b", "\x1c", "\x85", "\u2028"])
def test_a_label_cannot_pretend_to_be_another_field(content: Path, tmp_path: Path, separator: str) -> None:
    (one,) = found(ext4(tmp_path / "image", content, "-L", f"{separator}ID_FS_TYPE=x"))
    assert one.kind == "ext4"
    assert one.label.endswith("ID_FS_TYPE=x")


def test_a_journal_that_was_not_replayed_is_known(content: Path, tmp_path: Path) -> None:
    image = ext4(tmp_path / "image", content)
    disk = partitioned(tmp_path / "disk", GPT, {88064: image})
    assert not found(disk)[1].needs_recovery
    change(image, "feature needs_recovery")
    disk = partitioned(tmp_path / "disk", GPT, {88064: image})
    assert found(disk)[1].needs_recovery
