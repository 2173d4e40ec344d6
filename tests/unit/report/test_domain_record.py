"""backup/report/domain_record.py: records survive files that can't be read or are damaged."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backup.model import Level
from backup.report import domain_record
from backup.report.domain_record import DomainRecord, DomainRecords, read_records

from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID


@pytest.fixture
def file(tmp_path: Path, recorder: Recorder) -> Path:
    """A file with a record of when web was saved."""
    DomainRecords(str(tmp_path), recorder).update(UUID, "web", saved="2024-01-01T00:00:00+00:00")
    return tmp_path / "proofs.json"


def record_db(file: Path, recorder: Recorder) -> None:
    DomainRecords(str(file.parent), recorder).update(OTHER_UUID, "db", saved="2025-01-01T00:00:00+00:00")


def test_an_update_keeps_the_records_of_other_domains(file: Path, recorder: Recorder) -> None:
    record_db(file, recorder)
    assert read_records(str(file.parent)) == {
        UUID: DomainRecord(saved="2024-01-01T00:00:00+00:00"),
        OTHER_UUID: DomainRecord(saved="2025-01-01T00:00:00+00:00"),
    }
    assert recorder.messages == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_file_that_can_not_be_read_is_not_overwritten(
    number: int, file: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def fail(path: Path, *_: Any, **__: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        patch.setattr(Path, "read_text", fail)
        assert read_records(str(file.parent)) == {}
        record_db(file, recorder)
    assert file.read_bytes() == before
    (warning,) = recorder.told(Level.WARNING)
    assert os.strerror(number).lower() in warning
    assert "see STATE_DIR" in warning


@pytest.mark.parametrize("value", [1, None, [], "no time", "2024-02-03", "2024-13-01T00:00:00+00:00"])
def test_a_time_that_is_none_costs_itself_alone(value: object, file: Path) -> None:
    """The metrics at the end of each run need it as a time."""
    good = "2024-02-03T04:05:06+00:00"
    file.write_text(json.dumps({UUID: {"saved": value, "verified": good, "failure": "damaged"}}))
    assert read_records(str(file.parent)) == {UUID: DomainRecord(verified=good, failure="damaged")}
    file.write_text(json.dumps({UUID: {"failure": ["damaged"], "drill_kind": None}}))
    assert read_records(str(file.parent)) == {UUID: DomainRecord()}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"uuid": 1}', b"\xff"])
def test_a_damaged_file_is_renamed_with_a_warning(damage: bytes, file: Path, recorder: Recorder) -> None:
    file.write_bytes(damage)
    assert read_records(str(file.parent)) == {}
    record_db(file, recorder)
    assert list(json.loads(file.read_text())) == [OTHER_UUID]
    assert file.with_name("proofs.json.damaged").read_bytes() == damage
    (warning,) = recorder.told(Level.WARNING)
    assert "renamed to proofs.json.damaged" in warning


@pytest.fixture
def lock(file: Path) -> Iterator[int]:
    """The directory's lock, held by a process that hangs."""
    descriptor = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


@pytest.mark.usefixtures("lock")
def test_a_lock_that_another_process_keeps_loses_the_update_only(
    file: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_record, "LOCK_LIMIT", 0.2)
    record_db(file, recorder)
    (warning,) = recorder.told(Level.WARNING)
    assert "another process has kept it locked for 0 s" in warning
    assert list(read_records(str(file.parent))) == [UUID]
