"""outputs/restic_repository/mounted_files.py: what it reads is in the repository, always."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.system.spool import whole
from outputs.restic_repository.mounted_files import MountedFiles, SegmentedImage, WholeImage
from outputs.segments.layout import HOLES, PER_DIRECTORY, ZEROS, ZEROS_LINK, Segments

from ..raising import raises
from ..samples import MIB

SIZE = 4096  # of a segment
SEGMENTS = Segments("vda", SIZE * (PER_DIRECTORY + 2), SIZE)
PLAIN = os.urandom(SIZE)
SECRET = b"secret of this node".ljust(SIZE)


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A directory as restic serves it, beside a file of this node."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node/secret").write_bytes(SECRET)
    disk = tmp_path / "mount/id/vda"
    (disk / "0001").mkdir(parents=True)
    (disk / ZEROS).write_bytes(bytes(SIZE))
    (disk / "0000").symlink_to(HOLES)
    (disk / "0001/000128").symlink_to(ZEROS_LINK)
    (disk / "0001/000129").write_bytes(PLAIN)
    (tmp_path / "mount/id/vda.img").write_bytes(PLAIN)
    return tmp_path / "mount"


@pytest.fixture
def files(mounted: Path) -> Iterator[MountedFiles]:
    opened = len(os.listdir("/proc/self/fd"))
    files = MountedFiles(os.open(mounted, os.O_PATH | os.O_DIRECTORY), lambda: "")
    yield files
    files.close()
    assert len(os.listdir("/proc/self/fd")) == opened, "every descriptor is closed"


def test_plain_files_and_the_links_of_holes_are_read(files: MountedFiles) -> None:
    image = SegmentedImage(files, "id", SEGMENTS)
    read = image.read(0, SEGMENTS.size)
    assert read == bytes(SIZE * (PER_DIRECTORY + 1)) + PLAIN
    assert WholeImage(files, "id/vda.img", SIZE).read(1, 10) == PLAIN[1:11]


def test_a_large_manifest_is_never_in_memory_as_a_whole(files: MountedFiles, mounted: Path) -> None:
    size = 32 * MIB + 1
    with (mounted / "id/manifest").open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    tracemalloc.start()
    content = files.whole("id/manifest")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(content), content.read(size - 5, 5)) == (size, b"\0\0end")
    assert peak < 16 * MIB
    assert whole(files.whole("id/vda.img")) == PLAIN
    del content  # with its file


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_disk_that_is_no_plain_file_is_refused(kind: str, files: MountedFiles, mounted: Path) -> None:
    disk = mounted / "id/vda.img"
    disk.unlink()
    if kind == "link":
        disk.symlink_to("../../node/secret")
    else:
        os.mkfifo(disk)
    with raises("the repository's id/vda.img is no plain file"):
        WholeImage(files, "id/vda.img", SIZE)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("0001/000129", "../../../../node/secret"),
        ("0001/000128", "../../../../node/secret"),
        ("0001/000129", f"../{ZEROS}/../../../../node/secret"),
        ("0001", "../../../node/directory"),
        ("../vda", "../../node/disk"),
    ],
)
def test_a_segment_that_leads_out_of_the_repository_is_refused(
    name: str, target: str, files: MountedFiles, mounted: Path
) -> None:
    for directory in ("directory", "disk/0001"):
        path = mounted.parent / "node" / directory
        path.mkdir(parents=True)
        for number in ("000128", "000129"):
            (path / number).write_bytes(SECRET)
    replaced = mounted / "id/vda" / name
    replaced = Path(os.path.normpath(replaced))
    replaced.rename(mounted / "aside")
    replaced.symlink_to(target)
    with pytest.raises(BackupError, match=r"no plain file|not a directory"):
        SegmentedImage(files, "id", SEGMENTS).read(PER_DIRECTORY * SIZE, 2 * SIZE)


def test_the_last_segment_is_no_link_if_it_is_shorter(files: MountedFiles, mounted: Path) -> None:
    segments = Segments("vda", SEGMENTS.size - 1, SIZE)
    last = mounted / "id/vda/0001/000129"
    last.unlink()
    last.symlink_to(ZEROS_LINK)
    with raises("the repository's id/vda/0001/000129 is no plain file"):
        SegmentedImage(files, "id", segments).read(segments.size - 10, 10)


@pytest.mark.parametrize("above", ["..", "../node", "id/../../node", "", "{node}"])
def test_an_id_of_a_manifest_leads_to_no_directory_above(
    above: str, files: MountedFiles, mounted: Path
) -> None:
    node = mounted.parent / "node"
    (mounted.parent / "vda.img").write_bytes(SECRET)
    (node / "vda.img").write_bytes(SECRET)
    with pytest.raises(BackupError, match="cannot read"):
        WholeImage(files, f"{above.format(node=node)}/vda.img", SIZE)


def test_a_file_that_was_read_as_restic_ended_is_whole(
    files: MountedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel closes it, and reports that the file system is gone."""
    close = os.close

    def closed(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(os, "close", closed)
    assert whole(files.whole("id/vda.img")) == PLAIN
    assert SegmentedImage(files, "id", SEGMENTS).read(SEGMENTS.size - SIZE, SIZE) == PLAIN
