"""compare.py, checksums.py, domain_record.py: every difference from what was saved is found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.model import Level
from backup.report.domain_record import DomainRecord, DomainRecords, read_records
from backup.restore_point.checksums import Checksums
from backup.stored import Layout, SavedImage
from backup.system.pipe_reader import PipeReader
from backup.system.pipe_writer import PipeWriter
from backup.transfer.backup_stream import copy
from backup.transfer.compare import (
    Mismatch,
    compare_with_checksums,
    compare_with_snapshot,
    object_number,
    pieces_from_image,
    pieces_from_output,
)
from tests.integration.scratch_image import source_of

from ..memory_snapshot import MemorySnapshot
from ..raising import raises
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, OTHER_UUID, UUID
from .test_backup_stream import SHAPES, read_all

SCATTERED = {MIB: b"a" * 5000, 5 * MIB + 1: b"b" * MIB, 12 * MIB: b"c" * (3 * MIB)}


def streamed(snapshot: MemorySnapshot) -> tuple[bytes, Checksums]:
    """Return what a snapshot's bytes are, and their checksums."""
    out, into = os.pipe()
    with ThreadPoolExecutor(1) as thread:
        arriving = thread.submit(read_all, out)
        try:
            with PipeWriter(into, lambda: None) as sink:
                checksums = copy(snapshot, sink).checksums
        finally:
            os.close(into)
        return arriving.result(), checksums


def saved(size: int, layout: Layout = LAYOUT) -> SavedImage:
    return SavedImage("vda", "vms/web-root", size, 0, 0, 0.0, "id", layout)


def verify(content: bytes, checksums: Checksums, size: int) -> None:
    with source_of(content) as source:
        compare_with_checksums(pieces_from_output(source, size), saved(size), checksums, lambda _: None)


def hold_against(snapshot: MemorySnapshot, source: PipeReader) -> None:
    pieces = pieces_from_output(source, snapshot.size)
    compare_with_snapshot(pieces, saved(snapshot.size), snapshot, lambda _: None)


@pytest.mark.parametrize("shape", SHAPES)
def test_unchanged_bytes_pass(shape: str) -> None:
    snapshot = SHAPES[shape]
    content, checksums = streamed(snapshot)
    if snapshot.size:
        verify(content, checksums, snapshot.size)
        with source_of(content) as source:
            hold_against(snapshot, source)


@pytest.mark.parametrize(
    ("at", "place"),
    [
        (MIB + 4999, f"5000 bytes at offset {MIB} (object 0)"),  # in the data
        (MIB + 5000, f"5000 bytes at offset {MIB} (object 0)"),  # just after it
        (MIB - 1, f"5000 bytes at offset {MIB} (object 0)"),  # just before it
        (8 * MIB, f"{4 * MIB} bytes at offset {8 * MIB} (object 2)"),  # in a hole
        (20 * MIB - 1, f"{4 * MIB} bytes at offset {16 * MIB} (object 4)"),  # in the last byte
    ],
)
def test_a_single_changed_byte_is_found_anywhere(at: int, place: str) -> None:
    snapshot = MemorySnapshot(20 * MIB, SCATTERED)
    content, checksums = streamed(snapshot)
    damaged = bytearray(content)
    damaged[at] ^= 1
    with pytest.raises(Mismatch) as caught:
        verify(bytes(damaged), checksums, snapshot.size)
    assert caught.value.message == f"vda (vms/web-root) differs from what was saved: {place}"
    with source_of(bytes(damaged)) as source, pytest.raises(Mismatch, match="differs from what was saved"):
        hold_against(snapshot, source)


def test_data_that_the_listing_missed_is_found_by_comparison_with_the_snapshot() -> None:
    content, _ = streamed(MemorySnapshot(20 * MIB, {MIB: b"a" * 5000}))
    whole = MemorySnapshot(20 * MIB, {MIB: b"a" * 5000, 17 * MIB: b"missed"})
    with source_of(content) as source, pytest.raises(Mismatch, match=r"\(object 4\)"):
        hold_against(whole, source)


def test_the_first_of_many_differences_are_listed_and_the_others_counted() -> None:
    snapshot = MemorySnapshot(20 * MIB, SCATTERED)
    _, checksums = streamed(snapshot)
    with pytest.raises(Mismatch, match=r"\(object 0\), .*\(object 1\), .*\(object 2\), and 2 more"):
        verify(b"x" * (20 * MIB), checksums, snapshot.size)


@pytest.mark.parametrize("size", [20 * MIB - 1, 20 * MIB + 1])
def test_more_or_fewer_bytes_are_an_error(size: int) -> None:
    content, checksums = streamed(MemorySnapshot(20 * MIB, SCATTERED))
    with pytest.raises(BackupError, match=r"the output (ended after|has more bytes)"):
        verify(content, checksums, size)


def test_checksums_beyond_the_end_are_an_error() -> None:
    content, checksums = streamed(MemorySnapshot(20 * MIB, SCATTERED))
    checksums.add(24 * MIB, b"x")
    with raises(f"vda (vms/web-root) has checksums beyond its {20 * MIB} bytes", Mismatch):
        verify(content, checksums, 20 * MIB)


def test_an_image_with_another_size_in_the_cluster_is_an_error() -> None:
    shorter, pieces = MemorySnapshot(16 * MIB), [bytes(4 * MIB)] * 5
    with raises(f"vda (vms/web-root) has {20 * MIB} bytes, {16 * MIB} were read", Mismatch):
        compare_with_checksums(pieces_from_image(shorter), saved(20 * MIB), Checksums(), lambda _: None)
    with raises(f"vda (vms/web-root): the snapshot has {16 * MIB} bytes, {20 * MIB} are saved", Mismatch):
        compare_with_snapshot(pieces, saved(20 * MIB), shorter, lambda _: None)


@pytest.mark.parametrize(
    ("layout", "objects"),
    [
        (LAYOUT, {0: 0, 4 * MIB - 1: 0, 4 * MIB: 1, 41 * MIB: 10}),
        (replace(LAYOUT, object_size=4096, stripe_unit=4096), {4096: 1, MIB: 256}),
        # two units of 1 MiB in an object, dealt out to three objects at a time
        (
            replace(LAYOUT, object_size=2 * MIB, stripe_unit=MIB, stripe_count=3),
            {0: 0, MIB: 1, 2 * MIB: 2, 3 * MIB: 0, 5 * MIB: 2, 6 * MIB: 3, 8 * MIB + 1: 5, 9 * MIB: 3},
        ),
    ],
)
def test_the_object_of_a_byte_follows_from_the_layout(layout: Layout, objects: Mapping[int, int]) -> None:
    assert {offset: object_number(offset, layout) for offset in objects} == objects


def test_a_proof_is_kept_and_a_failure_does_not_forget_when_it_was_last_good(
    tmp_path: Path, recorder: Recorder
) -> None:
    state = tmp_path / "state"
    known = DomainRecords(str(state), recorder)
    assert read_records(str(state)) == {}
    known.record_verified(UUID, "web")
    known.update(OTHER_UUID, "db", failure="it is damaged")
    good = read_records(str(state))[UUID]
    known.update(UUID, "web", failure="it is damaged now")
    assert read_records(str(state)) == {
        UUID: replace(good, failure="it is damaged now"),
        OTHER_UUID: DomainRecord(failure="it is damaged"),
    }
    assert [path.name for path in state.iterdir()] == ["proofs.json"]
    (state / "proofs.json").write_text("garbage")
    assert read_records(str(state)) == {}, "what can't be read is not known"
    assert recorder.messages == []


def test_a_proof_that_can_not_be_noted_is_a_warning(tmp_path: Path, recorder: Recorder) -> None:
    (tmp_path / "state").touch()
    DomainRecords(f"{tmp_path}/state", recorder).record_verified(UUID, "web")
    text = f"cannot record in {tmp_path}/state what was saved or verified: file exists (hint: see STATE_DIR)"
    assert recorder.messages == [(Level.WARNING, "web", text)]
