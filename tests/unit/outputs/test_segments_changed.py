"""outputs/segments/changed.py, transfer/spot_check.py: changes are read, all else equals the base."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest

from backup.errors import BackupError
from backup.model import Extent, Level
from backup.restore_point.checksums import Checksums
from backup.stored import Base, SnapshotId
from backup.text import size_text
from backup.transfer import backup_stream as stream
from backup.transfer import spot_check as changes
from outputs.segments import changed as segmented_disk
from outputs.segments import layout as cut
from outputs.segments.changed import SegmentedDisk, planned
from outputs.segments.layout import pack_times, unpack_times
from outputs.segments.reader import SegmentReader

from ..memory_snapshot import MemorySnapshot, MemorySource
from ..samples import TAKEN
from .test_segment_reader import checksums_of, read_in_order

UNIT = 16 << 10  # stands for a MiB: it takes less time
READ = 4 * UNIT
SEGMENT = 2 * READ
DAY = timedelta(days=1)
NEVER = timedelta(0)
BASE = "base"
DATA = {UNIT: b"a" * 5000, 9 * UNIT: b"b" * 5000, 17 * UNIT: b"c" * 100, 38 * UNIT: b"d"}
SIZE = 40 * UNIT  # five segments


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", SEGMENT)
    monkeypatch.setattr(stream, "READ_SIZE", READ)
    monkeypatch.setattr(changes, "READ_SIZE", READ)


@dataclass
class Run:
    """A disk as a run planned it, and the messages of the run."""

    disk: SegmentedDisk
    messages: list[tuple[Level, str]] = field(default_factory=list)

    def all_read(self) -> bool:
        return len(self.disk.changed) == len(self.disk.files.segments) and self.disk.base is None


def run(
    snapshot: MemorySnapshot,
    base: Base | None = None,
    taken: datetime = TAKEN,
    full_read_interval: timedelta = NEVER,
    fast: bool = False,
) -> Run:
    messages: list[tuple[Level, str]] = []

    def log(level: Level, text: str) -> None:
        messages.append((level, text))

    snapshot.base = BASE
    return Run(
        planned(MemorySource(snapshot, base=base), snapshot, taken, full_read_interval, fast, log), messages
    )


def read(disk: SegmentedDisk) -> Mapping[int, bytes]:
    """Read the changed segments, as restic does."""
    found = {}
    for number in {*disk.changed} - {*disk.files.holes}:
        extent = disk.files.segments.extent(number)
        segment = SegmentReader(disk.files.reader, extent)
        found[number] = read_in_order(segment, 0, extent.length, UNIT)
        assert segment.complete
        disk.files.read.keep(number, segment.checksums)
    return found


def base_of(disk: SegmentedDisk, taken: datetime = TAKEN) -> Base:
    """Return the base that this run, a full read, leaves for the next one."""
    checksums = disk.checksums()
    saved = disk.saved(checksums, taken, 1.0)
    return Base(BASE, saved, checksums.packed, pack_times(disk.files.times))


def saved(snapshot: MemorySnapshot, taken: datetime = TAKEN) -> Base:
    """Return the base after a first run."""
    first = run(snapshot, taken=taken).disk
    read(first)
    return base_of(first, taken)


def unchanged(*changed: Extent, data: Mapping[int, bytes] = DATA, size: int = SIZE) -> MemorySnapshot:
    """Return a snapshot of which these extents are reported as changed."""
    return MemorySnapshot(size, data, changed=changed)


def test_without_a_base_there_is_a_full_read_with_its_reason() -> None:
    first = run(MemorySnapshot(SIZE, DATA))
    assert first.all_read()
    assert {*first.disk.files.holes} == {3}
    assert first.disk.changed_bytes == SIZE - SEGMENT
    assert {*first.disk.files.times} == {int(TAKEN.timestamp() * 1e9)}
    why = ": full read, there is no base snapshot of a previous backup"
    assert first.messages == [(Level.INFO, f"vda (vms/web-root){why}")]


def test_unchanged_segments_are_not_read_and_have_their_old_times() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    second = run(unchanged(), base, TAKEN + DAY)
    assert [*second.disk.changed] == []
    assert second.disk.files.times == unpack_times(base.times)
    assert second.disk.base is base
    assert second.messages == []


@pytest.mark.parametrize(
    ("extents", "changed"),
    [
        ([Extent(0, 1)], {0}),
        ([Extent(SEGMENT - 1, 1)], {0}),
        ([Extent(SEGMENT - 1, 2)], {0, 1}),
        ([Extent(2 * SEGMENT, SEGMENT)], {2}),
        ([Extent(SEGMENT - 1, 2 * SEGMENT + 2)], {0, 1, 2, 3}),
        ([Extent(SIZE - 1, 1)], {4}),
        ([Extent(0, 5), Extent(3 * SEGMENT, 5)], {0, 3}),
        ([Extent(0, SIZE)], {0, 1, 2, 3, 4}),
    ],
)
def test_a_segment_with_a_possible_change_is_read_and_newer_than_all(
    extents: Sequence[Extent], changed: set[int]
) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    disk = run(unchanged(*extents), base, TAKEN + DAY).disk
    assert {*disk.changed} == changed
    before, now = unpack_times(base.times), disk.files.times
    assert {number for number in range(5) if now[number] != before[number]} == changed
    assert all(now[number] > max(before) for number in changed)


@pytest.mark.parametrize(
    "back", [timedelta(), timedelta(microseconds=1), DAY, timedelta(days=20_000)], ids=str
)
def test_new_times_are_later_than_all_old_ones_even_if_the_clock_was_set_back(back: timedelta) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    latest = max(unpack_times(base.times))
    for start in range(3):
        disk = run(unchanged(Extent(start * SEGMENT, 1)), base, TAKEN - back).disk
        assert disk.files.times[start] > latest
        latest = disk.files.times[start]
        read(disk)
        base = base_of(disk)


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (SIZE, SIZE + 1, {5}),
        (SIZE, SIZE + 3 * SEGMENT, {5, 6, 7}),
        (SIZE - 1, SIZE, {4}),
        (SIZE - 1, SIZE + 1, {4, 5}),
        (SIZE + 1, SIZE, set()),
        (SIZE, SIZE - 1, {4}),
        (SIZE, SIZE - SEGMENT + 1, {4}),
        (SIZE, 1, {0}),
        (0, SIZE, {0, 1, 2, 3, 4}),
        (SIZE, 0, set()),
        (0, 0, set()),
    ],
)
def test_new_segments_and_those_of_another_length_are_read(before: int, now: int, changed: set[int]) -> None:
    base = saved(MemorySnapshot(before))
    disk = run(MemorySnapshot(now), base).disk
    assert {*disk.changed} == changed
    assert disk.base is base
    assert len(disk.files.times) == len(disk.files.segments)
    holes = {number for number in range(len(disk.files.segments)) if disk.files.segments.can_be_link(number)}
    assert {*disk.files.holes} == holes
    assert disk.changed_bytes == sum(disk.files.segments.extent(number).length for number in changed - holes)


def test_after_any_changes_files_and_checksums_equal_the_image() -> None:
    dice = random.Random(10)
    size, data = SIZE, dict(DATA)
    base: Base | None = None
    files_in_restic: dict[int, tuple[int, bytes]] = {}  # time and bytes by segment
    taken, read_in_all = TAKEN, 0
    old = b""
    for _ in range(12):
        snapshot = MemorySnapshot(size, data)
        content = snapshot.content
        snapshot.changed = difference(old, content)
        disk = run(snapshot, base, taken).disk
        fresh = read(disk)
        read_in_all += len(fresh)
        files = {}
        for number, time in enumerate(disk.files.times):
            length = disk.files.segments.extent(number).length
            was = files_in_restic.get(number)
            if number in disk.files.holes:
                files[number] = (time, bytes(length))
                continue
            files[number] = was if was and (was[0], len(was[1])) == (time, length) else (time, fresh[number])
        assert b"".join(part for _, part in files.values()) == content
        assert [*disk.checksums()] == checksums_of(snapshot, Extent(0, size), READ)
        assert disk.missing == 0
        files_in_restic, base, old = files, base_of(disk, taken), content
        taken += dice.choice((DAY, -DAY, timedelta()))
        size, data = changed_at_random(size, data, dice)
    assert 5 < read_in_all < 12 * 4, "some segments were read again, and not all"


def changed_at_random(size: int, data: dict[int, bytes], dice: random.Random) -> tuple[int, dict[int, bytes]]:
    """Write something, or let a piece become a hole, or give the image another size."""
    data = dict(data)
    kind = dice.choice(("write", "write", "discard", "resize", "nothing"))
    if kind == "resize":
        size = dice.choice((SIZE, 17 * UNIT + 513, 25 * UNIT, 48 * UNIT))
    elif kind == "discard" and data:
        del data[dice.choice([*data])]
    elif kind == "write":
        data[dice.randrange(0, size // UNIT) * UNIT] = dice.randbytes(dice.choice((1, 4096, UNIT)))
    return size, {at: part[: size - at] for at, part in data.items() if at < size}


def difference(old: bytes, new: bytes) -> Sequence[Extent]:
    """List what differs, in pages; what one of them lacks is no difference, as an image's end is none."""
    step = UNIT // 4
    both = min(len(old), len(new))
    places = (
        at
        for at in range(0, both, step)
        if old[at : at + step][: both - at] != new[at : at + step][: both - at]
    )
    return [Extent(at, min(step, both - at)) for at in places]


def test_a_smaller_image_has_no_checksums_beyond_its_end() -> None:
    disk = run(
        MemorySnapshot(9 * UNIT + 5000, {UNIT: b"a" * 5000, 9 * UNIT: b"b" * 5000}),
        saved(MemorySnapshot(SIZE, DATA)),
    ).disk
    read(disk)
    assert [offset for offset, _, _ in disk.checksums()] == [UNIT, 9 * UNIT]
    assert disk.saved(disk.checksums(), TAKEN, 1.0).data_bytes == 10_000


def test_a_segment_is_a_hole_while_it_has_no_data() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    filled = {at: part for at, part in LIES["data in a hole"].items() if at != 9 * UNIT}
    later = run(unchanged(Extent(30 * UNIT, 1), Extent(9 * UNIT, 5000), data=filled), base).disk
    assert {*later.files.holes} == {1}
    assert {*read(later)} == {3}
    assert [offset for offset, _, _ in later.checksums()] == [UNIT, 17 * UNIT, 30 * UNIT, 38 * UNIT]
    last = run(unchanged(data=filled), base_of(later)).disk
    assert {*last.files.holes} == {1}
    assert last.changed_bytes == 0


def test_a_chain_keeps_its_segment_size_until_its_next_full_read(monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    monkeypatch.setattr(cut, "MOST", 2)  # a new chain has fewer, larger ones
    later = run(unchanged(), base)
    assert (later.messages, later.disk.files.segments.segment_size) == ([], SEGMENT)
    assert not later.all_read()
    due = run(unchanged(), base, TAKEN + 30 * DAY, full_read_interval=30 * DAY)
    assert due.all_read()
    assert len(due.disk.files.segments) <= 2
    assert min(due.disk.files.times) > max(unpack_times(base.times))


@pytest.mark.parametrize("segment_size", [0, -SEGMENT, SEGMENT - 1, SEGMENT + 1, 2 * SEGMENT])
def test_segments_that_cannot_be_shown_again_are_not_built_on(segment_size: int) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    other = replace(base, saved=replace(base.saved, segment_size=segment_size))
    later = run(unchanged(), other)
    assert later.all_read()
    why = "full read, its segments in the previous backup do not suit it"
    assert later.messages == [(Level.INFO, f"vda (vms/web-root): {why}")]


def test_a_chain_with_more_segments_than_have_names_is_not_built_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    monkeypatch.setattr(cut, "MOST_NAMES", SIZE // SEGMENT - 1)
    assert run(unchanged(), base).all_read()


@pytest.mark.parametrize(
    ("after", "due"),
    [
        (30 * DAY, True),
        (31 * DAY, True),
        (30 * DAY - timedelta(seconds=1), False),
        (timedelta(), False),
        (-DAY, False),
        (-31 * DAY, True),  # or a clock that was wrong once would put it off for ever
    ],
    ids=str,
)
def test_a_full_read_is_due_after_so_many_days(after: timedelta, due: bool) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    later = run(unchanged(), base, TAKEN + after, full_read_interval=30 * DAY)
    assert later.all_read() == due
    why = ": full read, the last one was on 2024-02-03 (FULL_READ_DAYS)"
    assert later.messages == ([(Level.INFO, f"vda (vms/web-root){why}")] if due else [])
    assert not run(unchanged(), base, TAKEN + 10_000 * DAY, NEVER).all_read()


def test_the_day_of_the_last_full_read_passes_from_run_to_run() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    for number in range(1, 30):
        disk = run(unchanged(Extent(0, 1)), base, TAKEN + number * DAY, full_read_interval=30 * DAY).disk
        read(disk)
        base = base_of(disk, TAKEN + number * DAY)
        assert base.saved.full_read == TAKEN.isoformat()
    last = run(unchanged(), base, TAKEN + 30 * DAY, full_read_interval=30 * DAY)
    assert last.all_read()
    read(last.disk)
    assert base_of(last.disk, TAKEN + 30 * DAY).saved.full_read == (TAKEN + 30 * DAY).isoformat()


def test_times_are_new_even_where_the_base_is_not_trusted_and_the_clock_was_set_back() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    again = run(unchanged(), base, TAKEN - 31 * DAY, full_read_interval=30 * DAY)
    assert again.all_read()
    assert min(again.disk.files.times) > max(unpack_times(base.times))


LIES = {
    "a byte of the data": {**DATA, 9 * UNIT: b"b" * 4999 + b"!"},
    "data before it": {**DATA, 9 * UNIT - 1: b"!"},
    "data behind it": {**DATA, 9 * UNIT + 5000: b"!"},
    "data in a hole": {**DATA, 30 * UNIT: b"!"},
    "a hole where data was": {at: part for at, part in DATA.items() if at != 17 * UNIT},
    "zeros where data was": {**DATA, 17 * UNIT: bytes(100)},
    "the image's first byte": {**DATA, 0: b"!"},
    "the image's last byte": {**DATA, SIZE - 1: b"!"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_change_that_ceph_does_not_report_is_found_and_causes_an_error_and_a_full_read(
    lie: str,
) -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    later = run(unchanged(data=LIES[lie]), base)
    assert later.all_read()
    (loud, text), (level, why) = later.messages
    assert (loud, level) == (Level.ERROR, Level.INFO)
    assert text.startswith("vda (vms/web-root): ")
    assert "differ from what was saved, although Ceph reports them as unchanged" in text
    assert ": full read, " in why
    read(later.disk)
    assert [*later.disk.checksums()] == checksums_of(unchanged(data=LIES[lie]), Extent(0, SIZE), READ)
    assert base_of(later.disk).saved.full_read == TAKEN.isoformat()


def test_the_place_of_an_unreported_change_is_in_the_error() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    (_, text), _ = run(unchanged(data=LIES["data in a hole"]), base).messages
    assert f"{4 * UNIT} bytes at {28 * UNIT} differ from what was saved" in text


def test_a_reported_change_is_no_error() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    later = run(unchanged(Extent(30 * UNIT, 1), data=LIES["data in a hole"]), base)
    assert {*later.disk.changed} == {3}
    assert later.messages == []


@dataclass
class Told(MemorySnapshot):
    """A snapshot that records how its changes were listed."""

    fast: list[bool] = field(default_factory=list)

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        self.fast.append(fast)
        return super().changes(since, fast)


def test_the_exact_list_of_changes_is_used_without_fast_diff() -> None:
    base, later = saved(MemorySnapshot(SIZE)), Told(SIZE)
    run(later, base)
    run(later, base, fast=True)
    assert later.fast == [False, True]


def test_failures_to_list_changes_and_to_read_the_sample_are_errors() -> None:
    class Unlisted(MemorySnapshot):
        def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
            raise BackupError("cannot list what has changed")

    base = saved(MemorySnapshot(SIZE, DATA))
    with pytest.raises(BackupError, match="cannot list what has changed"):
        run(Unlisted(SIZE, DATA), base)
    failing = MemorySnapshot(SIZE, DATA, fails_at=2)
    with pytest.raises(BackupError, match="cannot read"):
        run(failing, base)


def test_the_sample_has_pieces_of_data_and_of_everything() -> None:
    size = 1600 * UNIT
    data = {number * 80 * UNIT: b"x" for number in range(20)}
    base, seen = saved_unread(MemorySnapshot(size, data)), set()
    for _ in range(3):
        later = MemorySnapshot(size, data)
        extents = [Extent(at, SEGMENT) for at in range(0, size, SEGMENT)]
        assert changes.spot_check(later, base, extents) is None
        of_data = [one for one in later.reads if one.offset in data]
        assert len(of_data) >= changes.SAMPLE == 16
        assert len(later.reads) - len(of_data) <= 16
        assert len(later.reads) > 20
        assert all(one.offset % READ == 0 and one.length == READ for one in later.reads)
        assert later.reads == sorted(later.reads, key=lambda one: one.offset)
        seen.add(tuple(later.reads))
    assert len(seen) == 3, "each run draws its own"


def saved_unread(snapshot: MemorySnapshot) -> Base:
    """Return a base without reading holes for it."""
    first = run(snapshot).disk
    found: dict[int, Checksums] = {}
    for at, part in sorted(snapshot.data.items()):
        found.setdefault(at // SEGMENT, Checksums()).add(at, part)
    for number, checksums in found.items():
        first.files.read.keep(number, checksums)
    return base_of(first)


def test_the_sample_is_of_unchanged_extents_only() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    later = MemorySnapshot(SIZE, {0: b"!" * SIZE})
    assert changes.spot_check(later, base, []) is None
    assert later.reads == []
    assert changes.spot_check(later, base, [Extent(SEGMENT, SEGMENT)]) == Extent(SEGMENT, READ)
    assert all(SEGMENT <= one.offset < 2 * SEGMENT for one in later.reads)


def test_a_changed_segment_that_restic_did_not_read_is_counted_as_missing() -> None:
    disk = run(MemorySnapshot(SIZE, DATA)).disk
    assert disk.missing == 4, "and one is a hole"
    read(disk)
    assert disk.missing == 0
    disk.files.read.clear()
    assert disk.missing == 4


def test_the_result_has_the_bytes_that_were_read_and_the_snapshot() -> None:
    base = saved(MemorySnapshot(SIZE, DATA))
    snapshot = replace(unchanged(Extent(9 * UNIT, 1)), source=SnapshotId("fsid", "image-id", 8))
    disk = run(snapshot, base, TAKEN + DAY).disk
    read(disk)
    image = disk.saved(disk.checksums(), TAKEN + DAY, 2.0)
    assert (image.target, image.image, image.size) == ("vda", "vms/web-root", SIZE)
    assert (image.data_bytes, image.read_bytes, image.seconds) == (10_101, 5000, 2.0)
    assert (image.restore_id, image.source.snapshot, image.segment_size) == ("", 8, SEGMENT)


class ListedInParts(MemorySnapshot):
    """A snapshot whose listings yield an empty extent at each segment's end."""

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        yield from super().changes(since, fast)
        yield Extent(SEGMENT, 0)

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        yield from super().extents(within)
        yield Extent(self.size, 0)


def test_the_progress_of_a_long_listing_is_reported_and_is_no_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segmented_disk, "LISTING_INTERVAL", 0)
    base = saved(MemorySnapshot(SIZE, DATA))
    again = run(ListedInParts(SIZE, DATA, changed=[Extent(2 * SEGMENT, 1)]), base)
    assert {*again.disk.changed} == {2}
    assert {*again.disk.files.holes} == {3}
    size = size_text(SIZE)
    assert again.messages == [
        (Level.INFO, f"vda (vms/web-root): listing changes, {size_text(SEGMENT)} of {size}"),
        (Level.INFO, f"vda (vms/web-root): listing allocated extents, {size} of {size}"),
    ]
