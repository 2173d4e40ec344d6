"""restore_stream.py, pipe_reader.py, new_file.py: images are restored completely or not at all."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.protocols import Source, WrittenBytes
from backup.restore.images import ImageRestore
from backup.restore.new_file import NewFile
from backup.stored import SavedImage
from backup.system.pipe_reader import PipeReader, WriterEnded
from backup.system.pipe_writer import Stalled
from backup.system.stop_request import StopRequest
from backup.transfer.restore_stream import PIECE, PIECES, write_image
from tests.integration.scratch_image import source_of

from ..jobs_on_paper import NoOutput
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB
from ..waiting import runs

PAGE = 4096
RANDOM = random.Random(6)


def go_on() -> None:
    """Never stops."""


class SlowWriter:
    """Copies the bytes only when the write is waited for, and may fail then."""

    def __init__(self, size: int, failing_at: int = -1) -> None:
        self.content = bytearray(size)
        self.pieces: list[tuple[int, int]] = []
        self.under_way = self.most = 0
        self.failing_at = failing_at

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        self.pieces.append((offset, len(data)))
        self.under_way += len(data)
        self.most = max(self.most, self.under_way)

        def wait() -> None:
            self.under_way -= len(data)
            if offset == self.failing_at:
                raise BackupError("no space left on device")
            self.content[offset : offset + len(data)] = data

        return wait


@pytest.mark.parametrize(
    ("layout", "pieces"),
    [
        ([("hole", 3 * PIECE)], []),
        ([("data", PAGE), ("hole", PAGE), ("data", 2 * PAGE)], [(0, PAGE), (2 * PAGE, 2 * PAGE)]),
        ([("hole", PIECE), ("data", PIECE), ("hole", 5)], [(PIECE, PIECE)]),
        ([("hole", PAGE + 7), ("data", 1)], [(PAGE, 8)]),
        ([("data", PIECE + 1)], [(0, PIECE), (PIECE, 1)]),
        ([("hole", 2 * PIECE + 100)], []),
        ([], []),
    ],
)
def test_data_is_written_in_whole_pages(layout: list[tuple[str, int]], pieces: list[tuple[int, int]]) -> None:
    content = b"".join(bytes(n) if kind == "hole" else b"x" * n for kind, n in layout)
    writer = SlowWriter(len(content))
    with source_of(content) as source:
        assert write_image(source, len(content), writer) == sum(length for _, length in pieces)
    assert (bytes(writer.content), writer.pieces) == (content, pieces)


def test_bytes_do_not_change_before_they_are_written_and_memory_is_bounded() -> None:
    content = RANDOM.randbytes(3 * PIECES * PIECE + 12345)
    writer = SlowWriter(len(content))
    progress: list[int] = []
    with source_of(content) as source:
        write_image(source, len(content), writer, progress.append)
    assert writer.content == content
    assert writer.most <= PIECES * PIECE
    assert progress[-1] == len(content)


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (MIB - 1, BackupError, "more bytes than the image's 1048575"),
        (MIB + 1, WriterEnded, "after 1048576 of 1048577 bytes"),
    ],
)
def test_more_or_fewer_bytes_than_the_image_has_are_an_error(
    size: int, error: type[BackupError], words: str
) -> None:
    with source_of(bytes(MIB)) as source, pytest.raises(error, match=words):
        write_image(source, size, SlowWriter(size))


def test_the_error_of_a_write_is_raised_and_the_other_writes_are_waited_for() -> None:
    content = b"x" * (4 * PIECE)
    writer = SlowWriter(len(content), failing_at=PIECE)
    with source_of(content) as source, pytest.raises(BackupError, match="no space left"):
        write_image(source, len(content), writer)
    assert writer.under_way == 0


def test_the_other_writes_of_the_same_piece_are_waited_for_too() -> None:
    content = (b"x" * PAGE + bytes(PAGE)) * 3
    writer = SlowWriter(len(content), failing_at=0)
    with source_of(content) as source, pytest.raises(BackupError, match="no space left"):
        write_image(source, len(content), writer)
    assert writer.under_way == 0


def test_an_output_without_bytes_counts_as_stalled() -> None:
    out, into = os.pipe()
    with os.fdopen(out), os.fdopen(into), pytest.raises(Stalled, match="gave no byte"):
        PipeReader(out, lambda: None, timeout=0).fill(memoryview(bytearray(1)))


SAVED = SavedImage("vda", "vms/web", 3 * MIB, MIB, 0, 0.0, "", LAYOUT)


def new_file(path: Path, force: bool = False) -> NewFile:
    return NewFile(str(path), SAVED, force)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[NewFile]:
    yield new_file(tmp_path / "vda.raw")
    assert list(tmp_path.glob("*restoring*")) == []


def test_a_file_gets_its_final_name_only_when_it_is_complete(target: NewFile, tmp_path: Path) -> None:
    target.require_free()
    with target.opened(go_on) as writer:
        writer.start_write(MIB, b"x")()
    assert not (tmp_path / "vda.raw").exists()
    target.commit()
    target.discard()
    assert (tmp_path / "vda.raw").read_bytes() == bytes(MIB) + b"x" + bytes(2 * MIB - 1)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_gets_the_file_too(
    target: NewFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", link)
    with target.opened(go_on):
        pass
    target.commit()
    assert (tmp_path / "vda.raw").stat().st_size == 3 * MIB


def test_without_qemu_img_a_restore_to_qcow2_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="qemu-img is not installed"):
        new_file(tmp_path / "vda.qcow2").require_free()
    new_file(tmp_path / "vda.raw").require_free()


def test_a_file_that_was_created_meanwhile_is_not_overwritten(target: NewFile, tmp_path: Path) -> None:
    with target.opened(go_on):
        (tmp_path / "vda.raw").write_text("precious")
    with pytest.raises(BackupError, match="exists"):
        target.commit()
    target.discard()
    assert (tmp_path / "vda.raw").read_text() == "precious"


def test_a_file_that_is_created_at_the_last_moment_is_not_overwritten(
    target: NewFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with target.opened(go_on):
        pass
    link = os.link

    def come_first(made: Path, path: Path) -> None:
        path.write_text("precious")
        link(made, path)

    monkeypatch.setattr(os, "link", come_first)
    with pytest.raises(BackupError, match="exists"):
        target.commit()
    target.discard()
    assert (tmp_path / "vda.raw").read_text() == "precious"


def test_a_file_system_without_links_takes_files_too(
    target: NewFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with target.opened(go_on):
        pass
    target.commit()
    assert (tmp_path / "vda.raw").stat().st_size == 3 * MIB


@pytest.mark.parametrize("left", ["vda.raw.restoring", "vda.raw.restoring.qcow2"])
def test_a_temporary_file_of_another_restore_is_not_touched(tmp_path: Path, left: str) -> None:
    target = new_file(tmp_path / "vda.raw", force=True)
    (tmp_path / left).write_text("another's")
    with raises(f"{tmp_path / left} exists: another restore is running or was killed"):
        target.require_free()
    target.discard()
    assert (tmp_path / left).read_text() == "another's"


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_planted_under_the_temporary_name_is_not_written_to(
    tmp_path: Path, link: bool
) -> None:
    target, planted, linked = new_file(tmp_path / "vda.raw"), tmp_path / "vda.raw.restoring", tmp_path / "x"
    linked.write_text("another's")
    if link:
        planted.symlink_to(linked)
    else:
        planted.write_text("another's")
    with pytest.raises(BackupError, match=r"restoring exists"), target.opened(go_on):
        raise AssertionError("the block must not begin")
    target.discard()
    assert planted.read_text() == linked.read_text() == "another's"


@pytest.fixture
def slow_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a qemu-img that never ends; return the file that it writes its pid to."""
    program, pid_file = tmp_path / "bin" / "qemu-img", tmp_path / "pid"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 20\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return pid_file


def test_a_request_to_stop_ends_the_conversion_and_ctrl_c_does_not_reach_it(
    slow_qemu_img: Path, tmp_path: Path
) -> None:
    def check_stop() -> None:
        if slow_qemu_img.exists():
            assert os.getpgid(int(slow_qemu_img.read_text())) != os.getpgid(0)
            raise Interrupted("interrupted", 2)

    target, began = new_file(tmp_path / "vda.qcow2"), time.monotonic()
    with pytest.raises(Interrupted), target.opened(check_stop):
        pass
    assert time.monotonic() - began < 10
    target.discard()
    assert not runs(int(slow_qemu_img.read_text()))
    assert list(tmp_path.glob("vda*")) == []


def test_a_file_system_without_room_is_refused(target: NewFile, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10, 10, 10, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(BackupError, match=r"has room for 40.0 KiB, vda.raw needs 1.0 MiB"):
        target.require_free()


def test_a_write_that_the_disk_refuses_is_an_error(target: NewFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(BackupError, match="no space left on device"), target.opened(go_on) as writer:
        writer.start_write(0, b"x")
    target.discard()


class TogetherOutput(NoOutput):
    """An output of which an image is read only once another one is under way, too."""

    def __init__(self) -> None:
        self.together = threading.Barrier(2, timeout=20)

    @contextmanager
    def image(self, _image: SavedImage, _check_stop: Callable[[], None]) -> Iterator[Source]:
        self.together.wait()
        with source_of(bytes(SAVED.size)) as source:
            yield source


def test_so_many_images_are_restored_at_a_time(tmp_path: Path) -> None:
    stop = StopRequest()
    targets = [new_file(tmp_path / name) for name in ("vda.raw", "vdb.raw")]
    ImageRestore("web", TogetherOutput(), 2, Recorder(), stop).restore([(SAVED, one) for one in targets])
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "vda.raw": SAVED.size,
        "vdb.raw": SAVED.size,
    }


class KilledOutput(NoOutput):
    """An output whose program got the signal that we got, and was ended by it."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def image(self, _image: SavedImage, _check_stop: Callable[[], None]) -> AbstractContextManager[Source]:
        self.stop.request(Interrupted("interrupted", signal.SIGTERM))
        raise BackupError("restic dump was killed by SIGTERM")


def test_a_signal_that_the_output_s_program_got_too_is_reported_as_our_own(tmp_path: Path) -> None:
    stop, target = StopRequest(), new_file(tmp_path / "vda.raw")
    restore = ImageRestore("web", KilledOutput(stop), 1, Recorder(), stop)
    with raises("interrupted", Interrupted):
        restore.restore([(SAVED, target)])
    assert list(tmp_path.iterdir()) == []
