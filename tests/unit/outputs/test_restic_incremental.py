"""outputs/restic_incremental.py: the base of a backup, and a restore point only if it is complete."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import pytest
import trio

from backup.errors import BackupError, Interrupted
from backup.model import Extent, Level
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import Base, PointId, SavedImage
from backup.system.pipe_writer import Stalled
from backup.system.spool import Spool, whole
from backup.transfer.compare import pieces_from_output
from outputs import restic_incremental
from outputs.restic_incremental import ResticIncremental
from outputs.restic_repository import child as restic_child
from outputs.restic_repository import program as restic_process
from outputs.restic_repository import repository as restic_repository
from outputs.restic_repository.messages import ResticError
from outputs.restic_repository.snapshots import segments_tag, stored_points
from outputs.segments import fuse
from outputs.segments import layout as cut
from outputs.segments.files import SegmentFiles
from outputs.segments.last_files import LastFiles
from outputs.segments.layout import pack_times, unpack_times
from outputs.segments.monitor import Monitor

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..recorder import Recorder
from ..repository import Repository
from ..samples import LAYOUT, MIB, RUN, TAKEN, UUID, domain, rbd_disk, restore_point, settings
from ..waiting import wait_until
from .test_segment_archive import archive
from .test_segment_files import LAST, Kernel, now
from .test_snapshots import listed

pytestmark = pytest.mark.usefixtures("nothing_left")

SEGMENT = 4 * MIB
PARENT = "0123abcd"
SAVED = "4567cdef" * 8
FAKE = """#!/bin/sh
cd {directory}
trap 'echo interrupted >>calls; exit 130' INT
echo "$*" >>calls
[ -e version ] && [ "$2" = version ] && cat version && exit
[ -e locked ] && rm locked && exit 11
case "$*" in
*snapshots*) cat snapshots.json; exit ;;
*dump*) [ -e dump-fails ] && {{ cat dump-fails >&2; exit 1; }}
  [ -e dump-hangs ] && exec sleep 100
  [ -e "$5.tar" ] || {{ echo "no matching ID found for prefix \\"$5\\"" >&2; exit 1; }}
  cat "$5.tar"; exit ;;
*backup*) while [ -e hangs ]; do sleep 0.01; done; processed=$(($(cat processed) + $(cat last || echo 0))) ;;
esac
printf '{{"message_type": "summary", "snapshot_id": "%s", "data_added": 77, ' {saved}
echo "\\"total_bytes_processed\\": $processed}}"
"""


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", SEGMENT)


class FakeRestic:
    """A fake restic that saves and lists what a test sets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "restic"
        self.path.write_text(FAKE.format(directory=directory, saved=SAVED))
        self.path.chmod(0o700)

    def output(self, repository: Repository, stall_timeout: float = 60, **changes: Any) -> ResticIncremental:
        program = repository.program(str(self.path), stall_timeout=stall_timeout)
        return ResticIncremental(program, mountpoint=str(self.directory / "run/segments"), **changes)

    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def hang(self) -> None:
        (self.directory / "hangs").touch()

    def dump_fails(self, words: str) -> None:
        (self.directory / "dump-fails").write_text(words)

    def dump_hangs(self) -> None:
        (self.directory / "dump-hangs").touch()

    def has_version(self, version: str) -> None:
        (self.directory / "version").write_text(f"restic {version} compiled with go1.19\n")

    def is_locked_once(self) -> None:
        (self.directory / "locked").touch()

    def saves(self, count: int) -> None:
        """Make it report this many saved bytes, and those of the last files that were read."""
        (self.directory / "processed").write_text(str(count))

    def holds(self, snapshots: Sequence[Mapping[str, Any]], manifests: Mapping[str, bytes]) -> None:
        (self.directory / "snapshots.json").write_text(json.dumps(snapshots))
        for identity, packed in manifests.items():
            (self.directory / f"{identity}.tar").write_bytes(packed)


@pytest.fixture
def restic(tmp_path: Path) -> FakeRestic:
    return FakeRestic(tmp_path)


OLD, NEWER = "20240101T000000Z-aaaa", "20240102T000000Z-bbbb"


def image(restore_id: str, target: str = "vda", **changes: Any) -> SavedImage:
    one = SavedImage(target, f"vms/{target}", 4096, 0, 0, 1.0, restore_id, LAYOUT, segment_size=SEGMENT)
    return replace(one, **changes)


def point(
    run: str, number: int, images: Sequence[SavedImage], complete: bool = True, current_id: str = ""
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return a restore point as restic lists it, of day `number`, and its manifest."""
    parts = []
    if images:
        tags = [segments_tag(one.target, one.image, one.size) for one in images]
        parts.append(listed(current_id or images[0].restore_id, UUID, run, *tags))
    if complete:
        parts.append(listed(f"manifest{number}", UUID, run, "definition"))
    packed = whole(
        manifest.pack(restore_point(domain(), run), images, {one.target: Checksums() for one in images})
    )
    dated = [{**one, "time": f"2024-01-0{number}T00:00:00Z"} for one in parts]
    return dated, {f"manifest{number}": packed}


def found(
    restic: FakeRestic,
    repository: Repository,
    points: Sequence[Any],
    *runs: str,
    known: Sequence[Any] = (),
) -> str:
    """Return the restic snapshot that the next backup would build on; `known` are the run's points."""
    snapshots = [one for snapshots, _ in points for one in snapshots]
    restic.holds(
        snapshots, {name: packed for _, packed in map(tuple, points) for name, packed in packed.items()}
    )
    listed_before = stored_points([one for snapshots, _ in known for one in snapshots])
    base = restic.output(repository).base(UUID, {*runs}, listed_before, lambda: None)
    return base.images[0].restore_id if base else ""


def test_the_base_is_the_newest_restore_point_of_the_runs(restic: FakeRestic, repository: Repository) -> None:
    points = [point(NEWER, 2, [image("new")]), point(OLD, 1, [image("old")]), point(RUN, 3, [image("last")])]
    assert found(restic, repository, points, OLD, NEWER) == "new"
    assert found(restic, repository, points, OLD) == "old"
    assert found(restic, repository, points, OLD, NEWER, RUN) == "last"
    assert found(restic, repository, points, "20230101T000000Z-xxxx") == ""
    assert found(restic, repository, points) == ""
    assert f"--tag=virt-rbd-backup,uuid={UUID}" in restic.calls()[0]


def test_restore_points_that_the_run_listed_are_not_listed_again(
    restic: FakeRestic, repository: Repository
) -> None:
    points = [point(OLD, 1, [image("old")]), point(NEWER, 2, [image("new")])]
    assert found(restic, repository, points, NEWER, known=points) == "new"
    (only,) = restic.calls()
    assert " dump " in only


def test_the_manifest_of_the_last_backup_is_not_read_again(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    restic.saves(SIZE)
    (image,) = save(restic, repository, source())
    listed_now = [listed(SAVED, UUID, RUN, f"segments.vda={SIZE} vms/vda", "definition")]
    before = len(restic.calls())
    base = restic.output(repository).base(UUID, {RUN}, stored_points(listed_now), lambda: None)
    assert base
    assert base.images == (replace(image, stored_bytes=0),)
    assert len(restic.calls()) == before, "not even restic was started"


def test_a_manifest_that_was_read_once_is_not_read_again(restic: FakeRestic, repository: Repository) -> None:
    points = [point(NEWER, 2, [image("new")])]
    points = [
        ([{**one, "id": "01234567" * 8} if "definition" in one["tags"] else one for one in part], packed)
        for part, packed in points
    ]
    restic.holds([], {"01234567" * 8: points[0][1]["manifest2"]})
    listed_now = stored_points(points[0][0])
    for _ in range(2):
        base = restic.output(repository).base(UUID, {NEWER}, listed_now, lambda: None)
        assert base
    assert len(restic.calls()) == 1


def test_a_restore_point_that_another_node_saved_since_is_found(
    restic: FakeRestic, repository: Repository
) -> None:
    old, new = point(OLD, 1, [image("old")]), point(NEWER, 2, [image("new")])
    assert found(restic, repository, [old, new], NEWER, known=[old]) == "new"
    assert found(restic, repository, [old, new], OLD, NEWER, known=[old]) == "new"
    unfinished = point(NEWER, 2, [image("new")], complete=False)
    assert found(restic, repository, [old, new], NEWER, known=[old, unfinished]) == "new"


def test_a_restore_point_whose_ids_changed_since_is_found(restic: FakeRestic, repository: Repository) -> None:
    snapshots, packed = point(NEWER, 2, [image("new")])
    before = [{**one, "id": f"{one['id']} before restic tag"} for one in snapshots]
    assert found(restic, repository, [(snapshots, packed)], NEWER, known=[(before, {})]) == "new"


def test_there_is_no_base_in_an_empty_repository(restic: FakeRestic, repository: Repository) -> None:
    assert found(restic, repository, [], OLD) == ""


def test_an_incomplete_restore_point_is_no_base(restic: FakeRestic, repository: Repository) -> None:
    points = [point(OLD, 1, [image("old")]), point(NEWER, 2, [image("new")], complete=False)]
    assert found(restic, repository, points, OLD, NEWER) == "old"
    assert found(restic, repository, points, NEWER) == ""


def test_a_restore_point_whose_segments_were_removed_is_no_base(
    restic: FakeRestic, repository: Repository
) -> None:
    (_, packed) = point(NEWER, 2, [image("new")])
    bare, _ = point(NEWER, 2, [])
    points = [point(OLD, 1, [image("old")]), (bare, packed)]
    assert found(restic, repository, points, OLD, NEWER) == "old"
    assert found(restic, repository, points, NEWER) == ""


def test_a_parent_is_named_by_its_current_id(restic: FakeRestic, repository: Repository) -> None:
    snapshots, packed = point(OLD, 1, [image("old1")], current_id="retagged")
    snapshots[0]["original"] = "old1234567"
    assert found(restic, repository, [(snapshots, packed)], OLD) == "retagged"
    assert (
        found(restic, repository, [point(OLD, 2, [image("01234567")], current_id="0123456789ab")], OLD)
        == "0123456789ab"
    )


def test_images_saved_as_one_file_are_no_base(restic: FakeRestic, repository: Repository) -> None:
    points = [point(OLD, 1, [image("old")]), point(NEWER, 2, [image("new", segment_size=0)])]
    assert found(restic, repository, points, OLD, NEWER) == "old"


@pytest.mark.parametrize("packed", [b"", b"garbage", b"\0" * 1024])
def test_a_manifest_of_another_format_is_no_base(
    restic: FakeRestic, repository: Repository, packed: bytes
) -> None:
    snapshots, _ = point(NEWER, 2, [image("new")])
    points = [point(OLD, 1, [image("old")]), (snapshots, {"manifest2": packed})]
    assert found(restic, repository, points, OLD, NEWER) == "old"


def base_error(
    restic: FakeRestic, repository: Repository, *points: Any, **more: Any
) -> tuple[str, list[str]]:
    """Look for a base among restore points of OLD and NEWER; return what is raised, and the warnings."""
    snapshots = [one for snapshots, _ in points for one in snapshots]
    restic.holds(snapshots, {name: one for _, packed in points for name, one in packed.items()})
    warnings: list[str] = []
    output = restic.output(repository, **more)
    try:
        output.base(UUID, {OLD, NEWER}, stored_points(snapshots), lambda: None, warnings.append)
    except BackupError as error:
        return f"{error.message}, transient: {error.transient}", warnings
    return "", warnings


def test_a_damaged_manifest_is_reported_with_its_restore_point_and_reason(
    restic: FakeRestic, repository: Repository
) -> None:
    snapshots, _ = point(NEWER, 2, [image("new")])
    error, warnings = base_error(restic, repository, (snapshots, {"manifest2": b"garbage"}))
    (warning,) = warnings
    assert error == ""
    assert warning.startswith(f"cannot build on the restore point of 2024-01-02 00:00:00 UTC, run {NEWER}: ")
    assert "manifest is damaged" in warning


def test_a_manifest_that_is_damaged_in_the_repository_is_reported_too(
    restic: FakeRestic, repository: Repository
) -> None:
    restic.dump_fails("decrypting blob 80f6 failed: ciphertext verification failed")
    error, warnings = base_error(restic, repository, point(NEWER, 2, [image("new")]))
    (warning,) = warnings
    assert (error, "ciphertext verification failed" in warning) == ("", True)


def test_a_manifest_that_cannot_be_read_now_is_an_error_and_no_reason_for_a_full_read(
    restic: FakeRestic, repository: Repository
) -> None:
    restic.dump_fails("Load(<snapshot/1>): connection refused")
    error, warnings = base_error(restic, repository, point(NEWER, 2, [image("new")]))
    words = "restic dump failed with exit code 1: Load(<snapshot/1>): connection refused"
    assert (error, warnings) == (f"{words}, transient: True", [])


def test_a_stall_and_a_stop_while_the_manifest_is_read_are_raised(
    restic: FakeRestic, repository: Repository
) -> None:
    restic.dump_hangs()
    error, warnings = base_error(restic, repository, point(NEWER, 2, [image("new")]), stall_timeout=0.3)
    assert (error, warnings) == ("the output gave no byte for 0 s, transient: True", [])


@dataclass
class Mount:
    """Stands in for the kernel: programs can't see the files, but are said to read these segments.

    By disk, all of each unless it is said, and then the last files; `manifest` is what they held. Notes in
    the program's log when they are given up.
    """

    log: Path
    reads: Mapping[str, Sequence[int]] | None = None
    directory: str = ""
    files: list[SegmentFiles] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    manifest: bytes = b""

    @contextmanager
    def __call__(self, files: SegmentFiles, directory: str) -> Iterator[Sequence[int]]:
        assert Path(directory).is_dir()
        self.directory = directory
        self.threads.append(threading.get_ident())
        self.files.append(files)
        now(lambda: self._read(files))
        give_up = files.give_up

        def given_up() -> None:
            with self.log.open("a") as calls:
                calls.write("gave up\n")
            give_up()

        files.give_up = given_up  # type: ignore[method-assign]
        yield ()

    async def _read(self, files: SegmentFiles) -> None:
        kernel = Kernel(files, pytest.MonkeyPatch())
        for disk in files._disks:
            every = range(len(disk.segments))
            for number in self.reads.get(disk.segments.target, ()) if self.reads is not None else every:
                handle = await kernel.open(disk.segments.path(number))
                await kernel.read(handle)
                await files.release(handle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_last, kernel, nursery.cancel_scope)
            while not files.error:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()  # as a restic that is interrupted

    async def _read_last(self, kernel: Kernel, scope: trio.CancelScope) -> None:
        self.manifest, checksum = [await kernel.read(await kernel.open(name)) for name in LAST]
        size = len(self.manifest) + len(checksum)
        self.log.with_name("last").write_text(str(size))
        scope.cancel()


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mount:
    mount = Mount(tmp_path / "calls")
    monkeypatch.setattr(restic_incremental, "mounted", mount)
    monkeypatch.setattr(restic_repository, "LOCK_PAUSE", 0.0)
    monkeypatch.setattr(restic_process, "WAIT_POLL", 0.02)
    monkeypatch.setattr(restic_child, "HEAD_START", 2)
    return mount


SIZE = SEGMENT + 5000
DATA = {MIB: b"a" * 5000, SEGMENT + 4999: b"z"}


def source(target: str = "vda", base: Base | None = None, **changes: Any) -> MemorySource:
    snapshot = MemorySnapshot(SIZE, DATA, base="base", **changes)
    return MemorySource(snapshot, rbd_disk(target, f"vms/{target}"), base)


def save(
    restic: FakeRestic,
    repository: Repository,
    *sources: MemorySource,
    job: JobOnPaper | None = None,
    **more: Any,
) -> Sequence[SavedImage]:
    of = restore_point(domain(disks=[one.disk for one in sources]))
    return restic.output(repository, **more).save(of, sources, job or JobOnPaper())


def base(target: str = "vda") -> Base:
    """Return a base that all of DATA was saved of."""
    checksums = Checksums()
    for at, part in DATA.items():
        checksums.add(at, part)
    saved = image(PARENT, target, size=SIZE, full_read=TAKEN.isoformat())
    return Base("base", saved, checksums.packed, pack_times([1000, 2000]))


def backups(restic: FakeRestic) -> list[str]:
    return [call for call in restic.calls() if call.startswith("--no-cache backup")]


def test_all_disks_and_then_the_manifest_are_saved_in_one_go(
    restic: FakeRestic, repository: Repository, mount: Mount, recorder: Recorder
) -> None:
    restic.saves(2 * SIZE)
    job, sources = JobOnPaper(recorder), [source(), source("vdb")]
    images = save(restic, repository, *sources, job=job)
    (segments,) = backups(restic)
    assert "--force" in segments
    assert "--parent" not in segments
    assert "--ignore-inode" in segments
    assert f"--tag=segments.vda={SIZE} vms/vda --tag=segments.vdb={SIZE} vms/vdb " in segments
    assert "--host=web --time=2024-02-03 04:05:06" in segments
    assert segments.endswith(" --tag=definition --tag=node=node1 .")
    results = [
        (one.target, one.size, one.data_bytes, one.read_bytes, one.stored_bytes, one.restore_id)
        for one in images
    ]
    assert results == [("vda", SIZE, 5001, 5001, 77, SAVED), ("vdb", SIZE, 5001, 5001, 0, SAVED)]
    assert job.released == sources
    packed = manifest.unpack(mount.manifest)
    assert packed.images == tuple(replace(one, restore_id="", stored_bytes=0) for one in images)
    assert packed.point == PointId(RUN, UUID)
    assert [*unpack_times(packed.times["vdb"])] == [int(TAKEN.timestamp() * 1e9)] * 2
    assert whole(packed.checksums["vda"]) == whole(base().checksums)
    first = recorder.told(Level.INFO)[2]
    assert first.startswith("vda (vms/vda) saved: 4.0 MiB, 2 of 2 segments read, 4.9 KiB of data, 77 B new")
    assert mount.directory == f"{restic.directory}/run/segments"


@pytest.mark.parametrize(
    ("version", "number", "has_option", "advised"),
    [
        ("0.14.0", 6, False, True),
        ("0.15.0", 6, True, False),
        ("0.18.1", 6, True, False),
        ("0.18.1", 0, False, False),
    ],
)
def test_several_files_are_read_at_a_time_if_that_is_set_and_restic_has_the_option(
    restic: FakeRestic,
    repository: Repository,
    mount: Mount,
    version: str,
    number: int,
    has_option: bool,
    advised: bool,
) -> None:
    restic.saves(SIZE)
    restic.has_version(version)
    save(restic, repository, source(), read_concurrency=number)
    assert (f" --read-concurrency={number} " in backups(restic)[0]) is has_option
    texts = restic.output(repository, read_concurrency=number).advice()
    assert any(one.startswith("RESTIC_READ_CONCURRENCY has no effect") for one in texts) is advised


def test_changes_are_read_with_the_last_restore_point_as_parent(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    mount.reads = {"vda": [1], "vdb": []}
    restic.saves(2 * SIZE)
    changed = source(base=base(), changed=[Extent(SEGMENT, 1)])
    images = save(restic, repository, changed, source("vdb", base=base("vdb")))
    (segments,) = backups(restic)
    assert f"--parent={PARENT}" in segments
    assert "--force" not in segments
    assert segments.count("--parent") == 1
    assert [one.read_bytes for one in images] == [1, 0]
    packed = manifest.unpack(mount.manifest)
    assert [*unpack_times(packed.times["vda"])] == [1000, int(TAKEN.timestamp() * 1e9)]
    assert [*unpack_times(packed.times["vdb"])] == [1000, 2000]
    for target in ("vda", "vdb"):
        assert whole(packed.checksums[target]) == whole(base().checksums)


def test_only_a_disk_without_a_base_gets_a_full_read(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    mount.reads = {"vda": [], "vdb": [0, 1]}
    restic.saves(2 * SIZE)
    save(restic, repository, source(base=base()), source("vdb"))
    assert f"--parent={PARENT}" in backups(restic)[0]


def test_an_image_without_a_byte_adds_no_parent(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    mount.reads = {}
    restic.saves(SIZE)
    before = Base(
        "base", image("", "vdb", size=0, full_read=TAKEN.isoformat()), Checksums().packed, pack_times([])
    )
    empty = MemorySource(MemorySnapshot(0, base="base"), rbd_disk("vdb", "vms/vdb"), before)
    save(restic, repository, source(base=base()), empty)
    assert [word for word in backups(restic)[0].split() if "parent" in word] == [f"--parent={PARENT}"]


@pytest.mark.parametrize(("reads", "missing"), [([0], 1), ([], 2)])
def test_without_every_changed_segment_restic_is_interrupted_and_gets_no_manifest(
    restic: FakeRestic, repository: Repository, mount: Mount, reads: list[int], missing: int
) -> None:
    mount.reads = {"vda": reads}
    restic.hang()
    job = JobOnPaper()
    with raises(f"restic did not read {missing} of the changed segments", ResticError):
        save(restic, repository, source(), job=job)
    assert restic.calls()[-1:] == ["gave up"]
    assert mount.manifest == b""
    assert job.released == []


@pytest.mark.parametrize("processed", [SIZE - 1, SIZE + 1])
def test_a_restic_that_saved_another_number_of_bytes_fails_the_domain(
    restic: FakeRestic, repository: Repository, mount: Mount, processed: int
) -> None:
    restic.saves(processed)
    job = JobOnPaper()
    expected = "segments and manifest have .* bytes, restic saved"
    with pytest.raises(ResticError, match=expected):
        save(restic, repository, source(), job=job)
    assert job.released == []
    assert not (repository.state_dir / "manifests").exists()


def test_a_snapshot_that_was_removed_while_it_was_read_leaves_no_manifest(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    class Removed(MemorySource):
        @contextmanager
        def open(self) -> Iterator[MemorySnapshot]:
            yield self.snapshot
            raise BackupError("the snapshot was removed while it was read")

    restic.hang()
    with raises("the snapshot was removed while it was read"):
        save(restic, repository, Removed(MemorySnapshot(SIZE, DATA)))
    assert mount.manifest == b""


def test_a_job_that_lost_its_lock_gets_no_manifest(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    class Lost(JobOnPaper):
        def require_lock(self) -> None:
            raise BackupError("the lock was lost")

    restic.hang()
    with raises("the lock was lost"):
        save(restic, repository, source(), job=Lost())
    assert mount.manifest == b""


@dataclass
class OnceItRuns(JobOnPaper):
    """A job that calls a function when restic has started."""

    restic: FakeRestic | None = None
    happens: Callable[[], None] = lambda: None

    def check_stop(self) -> None:
        assert self.restic
        wait_until(self.restic.calls, 5, "restic has begun")
        self.happens()
        super().check_stop()


@pytest.mark.parametrize("error", [BackupError("cannot read 5 bytes at 0"), ZeroDivisionError()])
def test_a_read_error_interrupts_restic_before_the_read_fails(
    restic: FakeRestic, repository: Repository, mount: Mount, error: Exception
) -> None:
    def fail() -> None:
        mount.files[0].error = error

    restic.hang()
    with pytest.raises(type(error)) as caught:
        save(restic, repository, source(), job=OnceItRuns(restic=restic, happens=fail))
    assert caught.value is error
    assert restic.calls()[1:] == ["interrupted", "gave up"]


def test_a_request_to_stop_interrupts_restic(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    restic.hang()
    job = OnceItRuns(restic=restic)
    job.happens = lambda: job.stop.request(Interrupted("interrupted", 15))
    with raises("interrupted", Interrupted):
        save(restic, repository, source(), job=job)
    assert restic.calls()[1:] == ["interrupted", "gave up"]


def test_a_restic_that_takes_nothing_counts_as_stalled(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    restic.hang()
    with raises("the output took no byte for 0 s", Stalled):
        save(restic, repository, source(), job=OnceItRuns(restic=restic), stall_timeout=0.1)
    assert restic.calls()[1:] == ["interrupted", "gave up"]


def test_a_slow_cluster_is_no_stalled_output() -> None:
    files = SegmentFiles([], LastFiles(Spool, 0))
    files.loading = 1  # a read of the image
    monitor = Monitor(files, MIB, 0.05, "web", JobOnPaper())
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        monitor.check()
    files.loading = 0
    with raises("the output took no byte for 0 s", Stalled):
        while time.monotonic() < until + 5:
            monitor.check()


def test_a_repository_that_is_locked_is_waited_for(
    restic: FakeRestic, repository: Repository, mount: Mount, recorder: Recorder
) -> None:
    restic.saves(SIZE)
    restic.is_locked_once()
    (saved,) = save(restic, repository, source(), job=JobOnPaper(recorder), lock_wait=60)
    assert saved.restore_id == SAVED
    assert len(mount.files) == 2
    assert recorder.told(Level.WARNING)[0].startswith("waiting up to 60 s (LOCK_WAIT)")


def test_reads_of_a_failed_attempt_do_not_count(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    class Locked(Recorder):
        def message(self, level: Level, domain: str, text: str) -> None:
            if level is Level.WARNING:
                mount.reads = {}

    restic.saves(SIZE)
    restic.is_locked_once()
    with pytest.raises(BackupError, match="did not read 2 of the changed segments"):
        save(restic, repository, source(), job=JobOnPaper(Locked()), lock_wait=60)


def test_files_are_mounted_in_a_thread_that_ends_after_restic(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    restic.saves(SIZE)
    save(restic, repository, source())
    (thread,) = mount.threads
    assert thread != threading.get_ident(), "the job's hooks would have its mounts"
    assert thread not in {one.ident for one in threading.enumerate()}


def test_progress_counts_the_bytes_that_are_expected_to_be_read(
    restic: FakeRestic, repository: Repository, mount: Mount, recorder: Recorder
) -> None:
    restic.saves(SIZE)
    save(restic, repository, source(), job=JobOnPaper(recorder))
    size = SIZE + int((restic.directory / "last").read_text())
    assert recorder.progressed == [("web", "", size, size)]


def test_an_image_is_read_from_its_segments_and_a_file_from_a_file(
    restic: FakeRestic, repository: Repository
) -> None:
    content = MemorySnapshot(SIZE, DATA).content
    parts = [("vda/0000/000000", content[:SEGMENT]), ("vda/0000/000001", content[SEGMENT:])]
    restic.holds([], {"old": archive(parts), "file": content})
    output = restic.output(repository)
    for one in (image("old", size=SIZE), image("file", size=SIZE, segment_size=0)):
        with output.image(one, lambda: None) as source:
            assert b"".join(map(bytes, pieces_from_output(source, SIZE))) == content
    assert [call.split()[-2:] for call in restic.calls()] == [["old", "/vda"], ["file", "vda.img"]]


def test_without_fuse_there_are_problems(
    restic: FakeRestic, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(fuse, "open", refuse, raising=False)
    problems = [error.message for error in restic.output(repository).problems()]
    assert problems[0] == "cannot open /dev/fuse: no such file or directory"


def test_it_is_made_from_the_settings() -> None:
    given = settings(runtime_dir="/run/x", full_read_days=7, fast_diff=True, restic_read_concurrency=4)
    output = ResticIncremental.from_settings(given)
    assert (output.mountpoint, output.full_read_days, output.fast_diff) == ("/run/x/segments", 7, True)
    assert output.keeps_base_snapshots
    assert output.read_concurrency == 4


def test_a_full_read_is_due_after_full_read_days(
    restic: FakeRestic, repository: Repository, mount: Mount
) -> None:
    restic.saves(SIZE)
    due = base()
    due = replace(due, saved=replace(due.saved, full_read="2024-01-01T00:00:00+00:00"))
    (saved,) = save(restic, repository, source(base=due), full_read_days=30)
    assert "--force" in backups(restic)[0]
    assert saved.full_read == TAKEN.isoformat()
