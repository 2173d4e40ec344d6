"""outputs/restic_incremental.py with a real restic, whose worker is killed at each of its reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from backup.errors import BackupError
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.stored import StoredPoint
from backup.system.process import SPAWN
from backup.system.process_group import ProcessId, kill, process_id
from backup.transfer.compare import pieces_from_output
from outputs.restic_incremental import ResticIncremental
from outputs.segments.files import SegmentFiles

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..repository import Repository
from ..samples import domain, rbd_disk, restore_point
from ..waiting import wait_until

SIZE = 5000
DATA = {0: b"first", 4000: b"last"}
TARGETS = ("vda", "vdb")
LAST = 2  # files after the segments
MOST = 30  # reads of a backup are fewer
# A wrapper does not pass on the kernel's signal. The keeper ends its restic, whose messages may be elsewhere;
# without a keeper the messages' pipe does.
WRAPPERS = {
    "restic": ('exec restic "$@"', False),
    "a wrapper": ('restic "$@"; exit $?', False),
    "a wrapper with a log": ('restic "$@" 2>>LOG; exit $?', True),
    "a wrapper with a log and a group": ('timeout 60 restic "$@" 2>>LOG; exit $?', True),
}


def output_of(directory: Path, binary: str = "restic") -> ResticIncremental:
    program = Repository(directory).program(binary)
    return ResticIncremental(program, mountpoint=f"{directory}/run/segments")


def wrapper_of(directory: Path, script: str) -> str:
    path = directory / "wrapper"
    path.write_text(f"#!/bin/sh\n{script}\n".replace("LOG", f"{directory}/log"))
    path.chmod(0o700)
    return str(path)


def save(directory: Path, binary: str) -> None:
    sources = [MemorySource(MemorySnapshot(SIZE, DATA), rbd_disk(one, f"vms/{one}")) for one in TARGETS]
    point = restore_point(domain(disks=[one.disk for one in sources]))
    output_of(directory, binary).save(point, sources, JobOnPaper())


def save_up_to(number: int, directory: Path, binary: str) -> None:
    """Save, but leave the read of this number without an answer, and have a file named after it."""
    read, done = SegmentFiles.read, 0

    async def stopping(self: SegmentFiles, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == number:
            (directory / f"read {number}").touch()
            await trio.sleep_forever()
        return await read(self, *arguments)

    SegmentFiles.read = stopping  # type: ignore[method-assign,assignment]
    os.setpgid(0, 0)
    save(directory, binary)


def killed_at(number: int, directory: Path, binary: str, with_keeper: bool) -> bool:
    """Kill a worker at its read of this number, and what keeps its reads waiting unless `with_keeper`.

    Return whether it came to that read.
    """
    worker = SPAWN.Process(target=save_up_to, args=(number, directory, binary))
    worker.start()
    reached = directory / f"read {number}"
    wait_until(lambda: reached.exists() or not worker.is_alive(), 60, "it reads, or has ended")
    if reached.exists() and not with_keeper:
        wait_until(lambda: keepers_of(worker.pid), 5, "the keeper has begun")
        (keeper,) = keepers_of(worker.pid)
        assert os.readlink(f"/proc/{keeper.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        kill(keeper)
    worker.kill()
    worker.join()
    wait_until(lambda: not [*restics(directory)], 30, "its restic has ended")
    return reached.exists()


def keepers_of(worker: int | None) -> list[ProcessId]:
    found = []
    for path in Path(f"/proc/{worker}/task").iterdir():
        for pid in (path / "children").read_text().split():
            with suppress(OSError):  # it has just ended
                if "read -r line" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(process_id(int(pid)))
    return found


def restics(directory: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"RESTIC_REPOSITORY={directory}/".encode() in (path / "environ").read_bytes():
                yield int(path.name)
        except OSError:  # it has just ended
            continue


def require_whole(directory: Path, points: Sequence[StoredPoint]) -> None:
    """Every restore point that counts has its manifest and every byte."""
    output = output_of(directory)
    for point in points:
        saved = with_current_ids(manifest.unpack(output.manifest(point)), point)
        assert [image.target for image in saved.images] == [*TARGETS]
        for image in saved.images:
            with output.image(image, lambda: None) as source:
                content = b"".join(map(bytes, pieces_from_output(source, SIZE)))
            assert content == MemorySnapshot(SIZE, DATA).content


@pytest.mark.parametrize("log", ["", " 2>>LOG"], ids=["", "with a log"])
@pytest.mark.parametrize("number", range(1, 4))
def test_a_read_that_fails_leaves_nothing_of_a_restic_in_a_group_of_its_own(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, number: int, log: str
) -> None:
    directory = repository.path.parent
    read, done = SegmentFiles.read, 0

    async def failing(self: SegmentFiles, *arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == number:
            await self._fail(BackupError("the cluster does not answer"))
        return await read(self, *arguments)

    monkeypatch.setattr(SegmentFiles, "read", failing)
    with pytest.raises(BackupError, match="the cluster does not answer"):
        save(directory, wrapper_of(directory, f'timeout 60 restic "$@"{log}; exit $?'))
    assert not [*restics(directory)]
    assert repository.snapshot_count() == 0


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_worker_killed_at_any_read_leaves_no_restore_point_that_is_not_whole(
    repository: Repository, wrapper: str
) -> None:
    directory = repository.path.parent
    script, with_keeper = WRAPPERS[wrapper]
    binary = wrapper_of(directory, script)
    counted = []
    for number in range(1, MOST):
        if not killed_at(number, directory, binary, with_keeper):
            break
        counted.append(len([one for one in output_of(directory).restore_points() if one.manifest_id]))
        assert repository.snapshot_count() == counted[-1], f"a part of one at read {number}"
    assert number < MOST - 1, "the last one was not killed"
    points = [one for one in output_of(directory).restore_points() if one.manifest_id]
    require_whole(directory, points)
    assert points, "that one is saved"
    in_manifest = len(counted) - 2 * LAST + 2
    assert not any(counted[:in_manifest]), "none before the manifest was read to its end"
