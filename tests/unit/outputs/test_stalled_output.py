"""An output without progress fails in time: before the last byte, and after it."""

from __future__ import annotations

import os

import pytest

from backup.system import pipe_writer
from backup.system.pipe_writer import PipeWriter, Stalled
from outputs.restic_repository import child

from ..repository import Repository
from ..samples import MIB


def go_on() -> None:
    """Never stops."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_writer, "WRITE_POLL", 0.02)
    monkeypatch.setattr(child, "WAIT_POLL", 0.02)
    monkeypatch.setattr(child, "INTERRUPT_LIMIT", 0.2)


def test_a_pipe_without_a_reader_stalls() -> None:
    out, into = os.pipe()
    try:
        with (
            PipeWriter(into, go_on, timeout=0.1) as sink,
            pytest.raises(Stalled, match="took no byte for 0 s"),
        ):
            sink.write(bytes(4 * MIB))
    finally:
        os.close(out)
        os.close(into)


def test_restic_that_does_not_end_after_the_last_byte_stalls_and_is_ended(
    repository: Repository, tmp_path: object
) -> None:
    path = f"{tmp_path}/fake-restic"
    with open(path, "w") as file:
        says = r"printf 'read-only, \033[2Ktrying again' >&2"
        file.write(f"#!/bin/sh\ncat >/dev/null\n{says}\nexec sleep 60\n")
    os.chmod(path, 0o700)
    program = repository.program(path, stall_timeout=3)
    late = pytest.raises(Stalled, match="did not end within 3 s after the last byte: read-only, trying again")
    with late, program.backup((), go_on) as backup:
        backup.sink.write(b"all of it")
