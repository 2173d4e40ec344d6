"""backup/files: what a guest can make the program keep in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from backup.errors import BackupError
from backup.files import copy_out, guestfish, session
from backup.files.copy_out import CopyOut
from backup.files.debugfs import Debugfs, debugfs
from backup.files.entries import MOST_ENTRIES, Entry
from backup.files.ext import ExtFiles
from backup.files.guestfish import GuestEntry, Guestfish, GuestfishFiles
from backup.files.guestfish_command import Command
from backup.files.order import Result
from backup.files.session import SessionEnded
from backup.terminal.files_text import result_parts
from backup.terminal.tables import json_parts, json_text

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

    def stream_before(self, _: str, __: list[BackupError]) -> Iterator[bytes]:
        for one in range(self.entries):
            yield b"/%d/100644/0/0/%x/0/\n" % (13 + one, one)

    def skip(self, parts: Iterator[bytes]) -> None:
        pass


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


class Names:
    """Stands in for a guestfish with a directory of so many names."""

    def __init__(self, names: int) -> None:
        self.names = names

    def ask(self, *commands: Command) -> bytes:
        values = {
            "dev": 1,
            "ino": 1 << 40,
            "mode": 0o100644,
            "uid": 0,
            "gid": 0,
            "size": 1 << 40,
            "mtime_sec": 1 << 30,
        }
        return "".join(f"st_{name}: {value}\n" for name, value in values.items()).encode() * len(commands)

    def stream(self, *_: Command) -> Iterator[bytes]:
        for one in range(self.names):
            yield b"%x\0" % one

    def skip(self, parts: Iterator[bytes]) -> None:
        pass


def test_the_entries_of_a_directory_that_libguestfs_reads_are_small_and_not_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = GuestEntry(1, 0o40755, 0, 0, b"/", 0, place=b"/", place_name=b"", device=1, seconds=0)
    tracemalloc.start()
    try:
        entries = GuestfishFiles(cast(Guestfish, Names(20_000))).entries(directory)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not any(hasattr(entry, "__dict__") for entry in entries)
    assert size / len(entries) * MOST_ENTRIES < 440 * MIB
    monkeypatch.setattr(guestfish, "MOST_ENTRIES", 100)
    with pytest.raises(BackupError, match="a directory with more than 100 entries"):
        GuestfishFiles(cast(Guestfish, Names(101))).entries(directory)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_list_is_printed_in_parts(as_json: bool) -> None:
    entries = [Entry(one, 0o100644, 0, 0, b"%d" % one, 0) for one in range(30_000)]
    texts = result_parts(Result(name="vda", entries=entries), "", as_json)
    tracemalloc.start()
    try:
        lines = sum(text.count("\n") for text in texts)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines >= 30_000
    assert most < 3 * MIB


def test_parts_of_json_are_the_same_as_all_of_it() -> None:
    for values in ([], [{"a": "line\nbreak"}], [{"a": 1, "b": [2]}, {}, "x"]):
        assert "".join(json_parts(values)) == json_text(values)


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
