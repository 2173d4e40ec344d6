"""system/spool.py: bytes in memory, or in an unnamed file, or in memory where there is no room for a file."""

from __future__ import annotations

import errno
import gc
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from backup.system import spool as module
from backup.system.spool import OpenFile, PackedFile, Part, Spool, chunks, whole

from ..waiting import open_files

LIMIT = 1000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MEMORY_LIMIT", LIMIT)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_anywhere_is_read_back(seed: int) -> None:
    drawn = random.Random(seed)
    spool, expected = Spool(), bytearray()
    for _ in range(60):
        offset, data = drawn.randrange(LIMIT * 3), drawn.randbytes(drawn.randrange(200))
        if drawn.random() < 0.5:
            offset = len(expected)
            spool.append(data)
        else:
            spool.write(offset, data)
        expected.extend(bytes(max(0, offset + len(data) - len(expected))))
        expected[offset : offset + len(data)] = data
        assert len(spool) == len(expected)
        start, length = drawn.randrange(LIMIT * 4), drawn.randrange(300)
        assert spool.read(start, length) == expected[start : start + length]
    assert whole(spool) == expected
    assert b"".join(chunks(spool, 7)) == expected


def test_large_ones_are_in_a_file_without_a_name_which_goes_with_them(tmp_path: Path) -> None:
    before = open_files()
    spool = Spool()
    spool.append(b"x" * LIMIT)
    assert open_files() == before
    spool.append(b"y")
    assert open_files() == before + 1
    assert [*tmp_path.iterdir()] == []
    assert whole(spool) == b"x" * LIMIT + b"y"
    del spool
    gc.collect()
    assert open_files() == before


@pytest.mark.parametrize("moment", ["created", "moved", "full"])
def test_without_room_for_a_file_it_stays_in_memory(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    pwrite, left = os.pwrite, {"created": 0, "moved": 0, "full": 3}[moment]

    def full(*arguments: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    if moment == "created":
        monkeypatch.setenv("TMPDIR", "/nowhere")
    spool, expected = Spool(), b""
    for number in range(60):
        spool.append(b"%100d" % number)
        expected += b"%100d" % number
    assert whole(spool) == expected


@pytest.mark.parametrize("size", [0, LIMIT, LIMIT + 1, 5 * LIMIT])
def test_a_program_gets_all_of_it_as_a_file(size: int) -> None:
    spool, content = Spool(), random.Random(1).randbytes(size)
    for start in range(0, size, 300):
        spool.append(content[start : start + 300])
    for _ in range(2):
        with spool.as_file() as descriptor:
            assert os.read(descriptor, size + 1) == content


def test_parts_end_where_they_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"headcontent")
    file = OpenFile(path.open("rb", buffering=0), 4)
    path.unlink()
    assert (len(file), whole(file)) == (7, b"content")
    part = Part(file, 1, 3)
    assert (len(part), whole(part), part.read(2, 9), part.read(5, 1)) == (3, b"ont", b"t", b"")


def test_tar_files_are_written_and_read() -> None:
    spool = Spool()
    with tarfile.open(fileobj=PackedFile(spool), mode="w") as tar:
        entry = tarfile.TarInfo("name")
        entry.size = 3 * LIMIT
        tar.addfile(entry, PackedFile(Spool(b"abc" * LIMIT)))
    with tarfile.open(fileobj=PackedFile(spool)) as tar:
        file: Any = tar.extractfile("name")
        assert file.read() == b"abc" * LIMIT
