"""outputs/restic_repository/mounted_point.py: a restore point is read at any offset, and nothing is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted, NotPossibleHere
from backup.protocols import Output
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.stored import SavedDomain, StoredPoint
from backup.system.spool import whole
from backup.system.stop_request import StopRequest
from outputs.restic import Restic
from outputs.restic_incremental import ResticIncremental
from outputs.restic_repository import child as restic_child
from outputs.restic_repository import mounted_point
from outputs.restic_repository import program as restic_program
from outputs.restic_repository.messages import MountEnded, ResticError, is_damage, without_snapshots
from outputs.segments import layout as cut

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..repository import Repository
from ..samples import MIB, OTHER_UUID, domain, held_point, rbd_disk, restore_point
from ..transfer.test_backup_stream import noise
from ..waiting import children, wait_until
from .test_locked_repository import exclusively_locked

pytestmark = pytest.mark.usefixtures("nothing_left")

VDA = MemorySnapshot(17 * MIB + 513, {3 * MIB + 5: noise(2 * MIB), 16 * MIB: noise(MIB)})
VDB = MemorySnapshot(2 * MIB, {0: b"other"})
# The last one: the kernel was reading ahead, and its page was not filled.
DEAD_MOUNT = r"cannot read .* from the repository: .*(not connected|connection abort|input/output error)"


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", 4 * MIB)


@pytest.fixture(params=["restic", "restic_incremental"])
def output(request: pytest.FixtureRequest, repository: Repository, tmp_path: Path) -> Output:
    """An output with a restore point, and one of another run."""
    output: Output = (
        Restic(repository.program())
        if request.param == "restic"
        else ResticIncremental(repository.program(), mountpoint=str(tmp_path / "segments"))
    )
    sources = [MemorySource(VDA, rbd_disk("vda", "vms/a")), MemorySource(VDB, rbd_disk("vdb", "vms/b"))]
    point = restore_point(domain(disks=[source.disk for source in sources]))
    output.save(point, sources, JobOnPaper())
    return output


def newest(output: Output) -> tuple[StoredPoint, SavedDomain]:
    point = output.restore_points()[-1]
    return point, with_current_ids(manifest.unpack(output.manifest(point)), point)


def test_images_are_read_at_any_offset_by_several_readers(output: Output) -> None:
    point, saved = newest(output)
    before = Path("/proc/self/mountinfo").read_text()
    with output.opened(point, lambda: None) as opened:
        assert Path("/proc/self/mountinfo").read_text() == before, "nobody else sees the mount"
        assert whole(opened.manifest()) == whole(output.manifest(point))
        images = [opened.image(image) for image in saved.images]
        wrong = []

        def read(offset: int, length: int) -> None:
            for image, snapshot in zip(images, (VDA, VDB)):
                content = snapshot.content[offset : offset + length]
                if content and image.read(offset, len(content)) != content:
                    wrong.append((offset, length))

        ranges = [(0, 100), (3 * MIB, 2 * MIB), (4 * MIB - 1, 2), (1, 17 * MIB), (17 * MIB, 513)]
        readers = [threading.Thread(target=read, args=one) for one in ranges]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert wrong == []
        opened.check()


def test_a_repository_behind_a_connection_has_no_lock_afterwards(
    output: Output, repository: Repository
) -> None:
    """restic needs its connection, a process of its group, when it is interrupted."""
    command = "sftp.command=/usr/lib/openssh/sftp-server"
    program = repository.program(repository=f"sftp:host:{repository.path}")
    remote = Restic(replace(program, options=(*program.options, f"--option={command}")))
    point, _ = newest(output)
    with remote.opened(point, lambda: None) as opened:
        assert whole(opened.manifest()) == whole(output.manifest(point))
        assert len(repository.locks()) == 1
    assert repository.locks() == []


def test_a_damaged_snapshot_of_another_domain_is_no_damage_of_this_one(
    repository: Repository, output: Output
) -> None:
    point, saved = newest(output)
    known = set((repository.path / "snapshots").iterdir())
    source = MemorySource(VDB)
    output.save(restore_point(domain("db", OTHER_UUID, disks=[source.disk])), [source], JobOnPaper())
    for path in set((repository.path / "snapshots").iterdir()) - known:
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with output.opened(point, lambda: None) as opened:
        assert opened.image(saved.images[0]).read(3 * MIB, 2 * MIB) == VDA.content[3 * MIB : 5 * MIB]
        assert opened.damage() == ""


def test_damage_is_what_restic_prints_of_data_only() -> None:
    snapshot = "could not load snapshot 6b56b1a5: load <snapshot/6b56b1a5>: invalid data returned"
    retried = "Load(<snapshot/6b56b1a5>, 0, 0) returned error, retrying: hash mismatch"
    data = "Load(<data/0123>) returned error, retrying: no such file"
    assert not is_damage(without_snapshots(f"{snapshot}; {retried}"))
    assert without_snapshots(f"{snapshot}; {data}; {retried}") == data


def test_a_size_that_is_not_the_manifest_s_is_an_error(output: Output) -> None:
    point, saved = newest(output)
    image = replace(saved.images[0], size=saved.images[0].size - 1)
    with (
        output.opened(point, lambda: None) as opened,
        pytest.raises(BackupError, match="but its manifest has"),
    ):
        opened.image(image).read(17 * MIB, 10)


def test_a_restic_that_ends_is_an_error_with_the_reason(output: Output) -> None:
    point, saved = newest(output)
    before = set(children())
    with (
        raises("restic mount was killed by SIGKILL", ResticError),
        output.opened(point, lambda: None) as opened,
    ):
        image = opened.image(saved.images[0])
        (pid,) = set(children()) - before
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(BackupError, match=DEAD_MOUNT):
            wait_until(lambda: image.read(3 * MIB, 2 * MIB) is None, 10, "it has ended")
        wait_until(lambda: not_runs(opened.check), 10, "it has ended")
        opened.check()


def not_runs(check: Callable[[], None]) -> bool:
    try:
        check()
    except MountEnded:
        return True
    return False


def test_a_restic_that_is_stopped_is_killed_at_the_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restic_child, "INTERRUPT_LIMIT", 0.5)
    output = Restic(repository.program())
    source = MemorySource(VDA)
    output.save(restore_point(domain(disks=[source.disk])), [source], JobOnPaper())
    point, saved = newest(output)
    before = set(children())
    with output.opened(point, lambda: None) as opened:
        opened.image(saved.images[0])
        (pid,) = set(children()) - before
        os.kill(pid, signal.SIGSTOP)
    assert set(children()) <= before


def test_a_repository_that_is_locked_exclusively_cannot_be_opened(repository: Repository) -> None:
    output = Restic(repository.program())
    output.save(restore_point(domain(disks=[])), [], JobOnPaper())
    (point,) = output.restore_points()
    with (
        exclusively_locked(repository),
        pytest.raises(ResticError, match=r"restic mount failed with exit code 1.* already locked") as caught,
        output.opened(point, lambda: None),
    ):
        pass
    assert caught.value.locked
    assert "meanwhile `restore --to-file` reads a disk without a lock" in caught.value.hint
    assert "prune" in caught.value.hint


@pytest.mark.parametrize("lacking", ["fusermount3", "/dev/fuse", "namespace"])
def test_what_this_node_lacks_is_no_error_of_the_restore_point(
    lacking: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "operation not permitted", "/dev/fuse")

    if lacking == "fusermount3":
        monkeypatch.setattr("shutil.which", lambda _name: None)
    else:
        function = "unshare_mounts" if lacking == "namespace" else "make_private"
        monkeypatch.setattr(mounted_point, function, fail)
    with (
        pytest.raises(NotPossibleHere, match=lacking),
        Restic(repository.program()).opened(held_point(manifest_id="id"), lambda: None),
    ):
        pass


@pytest.fixture
def hanging(repository: Repository, tmp_path: Path) -> Iterator[Restic]:
    """A restic that never serves its mount."""
    fake = tmp_path / "hanging-restic"
    fake.write_text("#!/bin/sh\nexec sleep 100\n")
    fake.chmod(0o700)
    yield Restic(replace(repository.program(str(fake)), stall_timeout=0.5))
    assert repository.locks() == []


def test_a_mount_that_does_not_appear_in_time_is_an_error(
    hanging: Restic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restic_program, "CALL_LIMIT", 0.1)
    with (
        raises("restic mount did not answer within 0 s", ResticError) as caught,
        hanging.opened(held_point(manifest_id="id"), lambda: None),
    ):
        pass
    assert caught.value.transient


def test_a_mount_that_does_not_appear_in_time_has_what_restic_has_printed(
    hanging: Restic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restic_program, "CALL_LIMIT", 0.1)
    fake = tmp_path / "hanging-restic"
    fake.write_text("#!/bin/sh\necho Load failed: no such file, retrying >&2\nexec sleep 100\n")
    hanging = Restic(replace(hanging.program, stall_timeout=3))  # time to print it
    with (
        pytest.raises(ResticError, match="did not answer within 3 s: Load failed: no such file, retrying"),
        hanging.opened(held_point(manifest_id="id"), lambda: None),
    ):
        pass


def test_a_stop_is_noticed_at_once_while_it_is_waited_for(hanging: Restic) -> None:
    stop, began = StopRequest(), time.monotonic()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    with raises("interrupted", Interrupted), hanging.opened(held_point(manifest_id="id"), stop.check):
        pass
    assert time.monotonic() - began < 10


def test_only_a_repository_on_this_node_holds_directories(repository: Repository, tmp_path: Path) -> None:
    output = Restic(repository.program())
    (tmp_path / "link").symlink_to(repository.path)
    for inside in (repository.path, repository.path / "locks", tmp_path / "link/data"):
        assert output.holds(str(inside))
    assert not output.holds(str(tmp_path))
    remote = Restic(repository.program(repository="sftp:nas:/srv/restic"))
    assert not remote.holds("/srv/restic/locks")
