"""system/pipe_writer.py: a reader gets the data that was written, however late, without a copy."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backup.system import pipe_writer
from backup.system.pipe_writer import PIPE_SIZE, PipeWriter

from ..samples import MIB

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return both ends; the test closes the second."""
    ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)


def read_all(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, MIB), b""))


def go_on() -> None:
    """A `check_stop` without a request to stop."""


def churn(length: int) -> None:
    """Make the allocator reuse freed memory."""
    for _ in range(4):
        rubbish = [b"\xff" * length for _ in range(64)]
        del rubbish


@pytest.mark.parametrize("length", [5000, 100_003, MIB - 5000])
def test_data_that_the_caller_has_released_is_still_read(pipe: tuple[int, int], length: int) -> None:
    ours, theirs = pipe
    count = (PIPE_SIZE // 2) // length or 1
    expected = [random.Random(number).randbytes(length) for number in range(count)]
    with PipeWriter(theirs, go_on) as sink:
        for number in range(count):
            sink.write(random.Random(number).randbytes(length))
            churn(length)
    os.close(theirs)
    churn(length)
    arrived = read_all(ours)
    assert arrived == b"".join(expected)
    assert sink.sent == len(arrived), "and the writer existed until now"


def test_a_long_stream_is_read_unchanged_and_only_unread_data_stays_in_memory(
    pipe: tuple[int, int],
) -> None:
    ours, theirs = pipe
    lengths = [random.Random(1).choice((1, 700, 4096, 70_000, MIB, 4 * MIB)) for _ in range(100)]
    with ThreadPoolExecutor(1) as threads:
        arriving = threads.submit(read_all, ours)
        with PipeWriter(theirs, go_on) as sink:
            for number, length in enumerate(lengths):
                sink.write(random.Random(number).randbytes(length))
                churn(length) if length < MIB else None
                kept = [len(data) for _, data in sink._unread]
                assert sum(kept[1:]) <= PIPE_SIZE + 4 * MIB
        os.close(theirs)
        arrived = arriving.result()
    assert arrived == b"".join(
        random.Random(number).randbytes(length) for number, length in enumerate(lengths)
    )


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_bytes_are_copied_if_the_kernel_refuses_to_splice(
    pipe: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(pipe_writer, "_vmsplice", refuse)
    monkeypatch.setattr(os, "sendfile", refuse)
    ours, theirs = pipe
    data = random.Random(2).randbytes(3 * MIB)
    with ThreadPoolExecutor(1) as threads:
        arriving = threads.submit(read_all, ours)
        with PipeWriter(theirs, go_on) as sink:
            sink.write_zeros(MIB + 1)
            sink.write(data)
            sink.write_zeros(3)
        os.close(theirs)
        assert arriving.result() == bytes(MIB + 1) + data + bytes(3)
    assert sink.sent == 4 * MIB + 4
