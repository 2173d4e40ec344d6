"""backup/files/volumes.py: partitions and file systems, whatever a guest has written there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from backup.files import volumes as volumes_module
from backup.files.order import Result
from backup.files.programs import output_of
from backup.files.volumes import MOST, Volume, volumes
from backup.terminal.files_text import result_parts

from ..raising import raises
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


@pytest.mark.parametrize("count", [MOST, MOST + 1])
def test_a_table_that_claims_too_many_partitions_is_an_error(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each one a program runs."""
    calls: list[str] = []

    def counted(arguments: Sequence[str], check_stop: Callable[[], None]) -> tuple[int, str]:
        calls.append(arguments[0])
        return output_of(arguments, check_stop) if arguments[0] == "partx" else (2, "")

    monkeypatch.setattr(volumes_module, "output_of", counted)
    lines = [f"start={2048 + 16 * number}, size=16" for number in range(count)]
    table = "\n".join(["label: gpt", "table-length: 512", "grain: 512", *lines, ""])
    disk = partitioned(tmp_path / "disk", table, {})
    if count > MOST:
        with raises(f"vda has more than {MOST} partitions"):
            found(disk)
        assert "blkid" not in calls
    else:
        assert len(found(disk)) == MOST


def test_of_a_partition_that_ends_behind_the_disk_there_is_what_is_on_it(
    content: Path, tmp_path: Path
) -> None:
    table = "label: dos\nstart=2048, size=20480\nstart=32048, size=81920\nstart=120000, size=20000\n"
    disk = partitioned(tmp_path / "disk", table, {32048: ext4(tmp_path / "image", content)})
    os.truncate(disk, 40 * MIB)
    one, two, three = found(disk)
    assert (one.name, one.kind, one.beyond) == ("vda1", "", 0)
    assert (two.name, two.kind, two.length) == ("vda2", "ext4", 40 * MIB - 32048 * SECTOR)
    assert two.length + two.beyond == 81920 * SECTOR
    assert (three.name, three.length, three.beyond) == ("vda3", 0, 20000 * SECTOR)
    assert "would be behind the end of the disk" in next(result_parts(Result([two, three]), "", False))


def test_the_size_of_a_sector_may_be_4096(content: Path, tmp_path: Path) -> None:
    image, disk = ext4(tmp_path / "image", content), tmp_path / "disk"
    run("truncate", "--size=160M", disk)
    commands = ["g", "n", "1", "256", "10495", "n", "2", "11008", "21247", "w"]
    run("fdisk", "--sector-size", 4096, disk, given="".join(f"{one}\n" for one in commands))
    run("dd", f"if={image}", f"of={disk}", "seek=11008", "bs=4096", "conv=notrunc,sparse", "status=none")
    assert places(disk) == [("vda1", 2048, ""), ("vda2", 88064, "ext4")]


OLD = {
    "mkfs.ext4 -q": "label: dos\nstart=2048, size=20480, type=83\nstart=88064, size=81920, type=83\n",
    "mkfs.xfs -q": "label: dos\nstart=2048, size=20480, type=83\nstart=88064, size=81920, type=83\n",
    "mkfs.btrfs -q": "label: gpt\nstart=2048, size=20480\nstart=88064, size=81920\n",
}


@pytest.mark.parametrize("command", OLD)
def test_what_was_on_the_disk_before_does_not_hide_its_partitions(
    content: Path, tmp_path: Path, command: str
) -> None:
    if not shutil.which(command.split()[0]):
        pytest.skip(f"needs {command}")
    disk, image = tmp_path / "disk", ext4(tmp_path / "image", content)
    run("truncate", "--size=400M", disk)
    run(*command.split(), disk)
    run("sfdisk", "--quiet", "--wipe=never", disk, given=OLD[command])
    assert places(disk)[0][::2] == ("vda1", "")
    assert places(disk)[-1][0] == "vda", "none of the partitions has anything"
    run("dd", f"if={image}", f"of={disk}", f"seek={88064}", "conv=notrunc,sparse", "status=none")
    assert places(disk) == [("vda1", 2048, ""), ("vda2", 88064, "ext4")]


@pytest.mark.parametrize("command", ["mkfs.vfat", "mkfs.ntfs -q -f -F"])
def test_what_begins_like_a_partition_table_is_on_all_of_the_disk(tmp_path: Path, command: str) -> None:
    if not shutil.which(command.split()[0]):
        pytest.skip(f"needs {command}")
    run("truncate", "--size=160M", tmp_path / "disk")
    run(*command.split(), tmp_path / "disk")
    (one,) = found(tmp_path / "disk")
    assert (one.name, one.needs_libguestfs) == ("vda", True)


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
