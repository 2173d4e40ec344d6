"""backup/files: what a guest can make the program keep in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from backup.errors import BackupError
from backup.files import copy_out, session
from backup.files.copy_out import CopyOut
from backup.files.debugfs import Debugfs, debugfs
from backup.files.entries import MOST_ENTRIES, Entry
from backup.files.ext import ExtFiles
from backup.files.session import SessionEnded

from ..recorder import Recorder
from ..samples import MIB
from .guest_images import ext4
from .test_ext import content, copied

__all__ = ["content"]

ROOT = Entry(2, 0o40755, 0, 0, b"/", 0)


class Listing:
    """Stands in for a debugfs with a directory of so many entries."""

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def ask(self, _: str) -> bytes:
        return b""

    def ask_for_all(self, _: str, __: list[BackupError]) -> bytes:
        return b"".join(b"/%d/100644/0/0/%x/0/\n" % (13 + one, one) for one in range(self.entries))


def test_the_entries_of_a_directory_are_small() -> None:
    files = ExtFiles(cast(Debugfs, Listing(MOST_ENTRIES // 10)))
    tracemalloc.start()
    try:
        entries = files.entries(ROOT)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(entries) * MOST_ENTRIES < 240 * MIB


def test_a_directory_of_too_many_entries_is_an_error() -> None:
    with pytest.raises(BackupError, match="a directory with more than 1200000 entries"):
        ExtFiles(cast(Debugfs, Listing(MOST_ENTRIES + 1))).entries(ROOT)


class Nested:
    """Directories within each other, with 10 pipes in each."""

    def __init__(self) -> None:
        self.made = 0

    def entries(self, _: Entry) -> Sequence[Entry]:
        self.made += 1
        inner = [Entry(1000 + self.made, 0o40755, 0, 0, b"d", 0)] if self.made < 50 else []
        return [*inner, *(Entry(1, 0o10644, 0, 0, b"%d" % one, 0) for one in range(10))]


def test_all_lists_that_are_in_memory_at_a_time_have_one_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_out, "MOST_ENTRIES", 100)
    recorder = Recorder()
    copy = CopyOut(Nested(), "web", recorder, lambda: None)  # type: ignore[arg-type]
    result = copy.copy(ROOT, str(tmp_path))
    assert (result.directories, result.failed) == (9, 1)


def test_errors_without_end_end_it(content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        (content / f"{number}").symlink_to(f"target_{number}")
    image = ext4(tmp_path / "image", content)
    image.write_bytes(image.read_bytes().replace(b"target_", b"hostile"))
    monkeypatch.setattr(session, "ERRORS_LIMIT", 5_000)
    with pytest.raises(SessionEnded, match=r"debugfs prints more than 4\.9 KiB of errors"):
        copied(image, tmp_path / "to")


def test_errors_that_were_read_are_not_kept(content: Path, tmp_path: Path) -> None:
    (content / "bad").symlink_to("target")
    image = ext4(tmp_path / "image", content)
    image.write_bytes(image.read_bytes().replace(b"target", b"hostil"))
    with debugfs(str(image), 0, lambda: None) as program:
        for _ in range(3):
            with pytest.raises(BackupError, match=r"ls: .* while reading inode"):
                program.ask("ls -p <2>")
        assert program._errors.seek(0, 2) == 0
