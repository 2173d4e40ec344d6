"""outputs/restic_copy.py: whole restore points in a second repository, whatever ends the copy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backup.errors import AlreadyRunning, BackupError, ConfigError
from backup.job.failed_points import FailedPoints
from backup.report.copy_record import read_record
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.settings import Settings
from backup.stored import PointId, StoredPoint
from backup.system.child_records import ChildRecord, records_in
from backup.system.process_group import ProcessId
from backup.transfer.compare import pieces_from_output
from outputs.restic import Restic
from outputs.restic_copy import RepositoryCopy, examine_copy, settings_of_copy
from outputs.restic_repository.program import Program
from tests.quick_repository import make_repository

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..recorder import Recorder
from ..repository import Repository
from ..samples import MIB, TAKEN, UUID, domain, rbd_disk, restore_point, settings
from ..waiting import wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

SOURCES = [
    MemorySource(MemorySnapshot(3 * MIB, {0: b"x" * MIB}), rbd_disk("vda", "vms/root")),
    MemorySource(MemorySnapshot(2 * MIB, {MIB: b"y"}), rbd_disk("vdb", "vms/data")),
]


def never_stop() -> None:
    pass


@dataclass
class Two:
    """Two repositories; the first one holds two restore points of two images, and an incomplete one."""

    directory: Path
    first: Repository
    settings: Settings

    def copy(self, binary: str = "restic", **changes: Any) -> RepositoryCopy:
        return RepositoryCopy.from_settings(self.changed(restic_binary=binary, **changes), never_stop)

    def changed(self, **changes: Any) -> Settings:
        return replace(self.settings, **changes)

    def points(self) -> list[StoredPoint]:
        return [*Restic.from_settings(settings_of_copy(self.settings)).restore_points()]

    def whole(self) -> list[str]:
        """Name the runs of the copy's restore points that count, and prove that each is whole."""
        output = Restic.from_settings(settings_of_copy(self.settings))
        counted = [point for point in output.restore_points() if point.manifest_id]
        for point in counted:
            saved = with_current_ids(manifest.unpack(output.manifest(point)), point)
            for image, source in zip(saved.images, SOURCES):
                with output.image(image, never_stop) as content:
                    read = b"".join(map(bytes, pieces_from_output(content, image.size)))
                assert read == source.snapshot.content
        return [point.id.run for point in counted]

    def locks(self) -> list[str]:
        """Name the locks in both; a file that restic had not yet given its final name is none."""
        paths = (
            path for one in ("repository", "second") for path in (self.directory / one / "locks").iterdir()
        )
        return [path.name for path in paths if "-tmp-" not in path.name]

    def wrapper(self, script: str) -> str:
        """Return a restic that does this in front of the real one's copy."""
        path = self.directory / "wrapper"
        path.write_text(f'#!/bin/sh\ncase "$*" in *"copy "*) {script} ;; esac\nexec restic "$@"\n')
        path.chmod(0o700)
        return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    repository = Repository(directory)
    for hours, run in enumerate(("run-1", "run-2")):
        of = domain("web", disks=[one.disk for one in SOURCES])
        point = restore_point(of, run, TAKEN + timedelta(hours=hours))
        Restic(repository.program()).save(point, SOURCES, JobOnPaper())
    with repository.program().backup(
        ("--tag=virt-rbd-backup", f"--tag=uuid={UUID}", "--tag=run=run-3"), never_stop
    ) as backup:
        backup.sink.write(b"an image that no manifest counts")
    return directory


@pytest.fixture
def two(saved: Path, tmp_path: Path) -> Two:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    make_repository(tmp_path / "second")
    repository = Repository(tmp_path)
    given = settings(
        restic_repository=str(repository.path),
        restic_password_file=str(repository.password_file),
        restic_options=["--no-cache"],
        copy_repository=str(tmp_path / "second"),
        runtime_dir=str(tmp_path / "run"),
        state_dir=str(tmp_path / "state"),
        output_stall_timeout=60,
    )
    return Two(tmp_path, repository, given)


def test_whole_restore_points_are_copied_once_and_can_be_read_there(two: Two) -> None:
    copy = two.copy()
    assert [point.id.run for point in copy.missing(())] == ["run-2", "run-1"], "the newest first"
    record = copy.copy((), Recorder())
    assert (record.copied, record.missing, record.error) == (2, 0, "")
    assert two.whole() == ["run-1", "run-2"]
    assert len(two.points()) == 2, "not the incomplete one"
    assert two.locks() == []
    snapshots = len(list((two.directory / "second/snapshots").iterdir()))
    assert two.copy().copy((), Recorder()).copied == 0
    assert len(list((two.directory / "second/snapshots").iterdir())) == snapshots
    kept = read_record(two.settings.state_dir)
    assert kept
    assert (kept.copied, kept.error) == (0, "")


@pytest.mark.parametrize("number", range(1, 6))
def test_a_copy_that_ends_after_any_snapshot_leaves_only_whole_restore_points_and_goes_on(
    two: Two, number: int
) -> None:
    """restic is given the first snapshots only, in as many calls as these take, and then fails."""
    first = f"""shift 3  # --no-cache copy --no-lock
        before=$(cat "$0.given" || echo 0); echo $((before + $#)) >"$0.given"
        if [ $((before + $#)) -gt {number} ]; then
            set -- $(printf "%s\\n" "$@" | head -n $(({number} - before)))
            [ $# = 0 ] || restic --no-cache copy --no-lock "$@"
            exit 1
        fi
        exec restic --no-cache copy --no-lock "$@" """
    with pytest.raises(BackupError, match="restic copy failed"):
        two.copy(two.wrapper(first)).copy((), Recorder())
    assert two.whole() == (["run-2"] if number >= 3 else [])
    failed = read_record(two.settings.state_dir)
    assert failed
    assert "restic copy failed" in failed.error
    record = two.copy().copy((), Recorder())
    assert (record.copied, record.error) == (1 if number >= 3 else 2, "")
    assert two.whole() == ["run-1", "run-2"]
    assert len(list((two.directory / "second/snapshots").iterdir())) == 6, "nothing twice"


def test_a_manifest_is_not_copied_without_an_image_that_restic_could_not_read(two: Two) -> None:
    """restic ignores an id in the first call, and in no other one."""
    ignores = f"""[ -e "$0.once" ] || {{
        touch "$0.once"; shift 4; set -- --no-cache copy --no-lock {"0" * 64} "$@"; }}"""
    record = two.copy(two.wrapper(ignores)).copy((), Recorder())
    assert two.whole() == ["run-1"]
    assert (record.copied, record.missing) == (1, 1)
    assert two.copy().copy((), Recorder()).copied == 1
    assert two.whole() == ["run-1", "run-2"]


def test_what_is_not_copied_although_restic_succeeds_is_an_error(two: Two) -> None:
    record = two.copy(two.wrapper("exit 0")).copy((), Recorder())
    assert (record.copied, record.missing) == (0, 2)
    assert record.error == "2 restore points are not in the copy, such as web of 2024-02-03 05:05 UTC"
    assert str(record).endswith(f"UTC: failed: {record.error}")


def test_a_restore_point_that_failed_and_is_still_to_be_removed_is_not_copied(two: Two) -> None:
    FailedPoints(two.settings.state_dir).add(PointId("run-2", UUID))
    record = two.copy().copy((), Recorder())
    assert (record.copied, record.error) == (1, "")
    assert two.whole() == ["run-1"]


def test_only_the_named_domains_are_copied(two: Two) -> None:
    with pytest.raises(ConfigError, match="no restore point of a domain 'other'"):
        two.copy().copy(("other",), Recorder())
    assert two.copy().copy(("w*",), Recorder()).copied == 2
    assert read_record(two.settings.state_dir) is None, "others may be missing in the copy"


def test_a_copy_that_neither_reads_nor_writes_is_ended(two: Two) -> None:
    copy = two.copy(two.wrapper("exec sleep 600"), output_stall_timeout=1)
    with raises("restic copy has neither read nor written anything for 1 s"):
        copy.copy((), Recorder())


def test_one_that_works_is_not_ended_however_long_it_takes(two: Two) -> None:
    works = "for i in $(seq 30); do sleep 0.2; echo; done"
    assert two.copy(two.wrapper(works), output_stall_timeout=5).copy((), Recorder()).copied == 2


def test_a_killed_copy_leaves_no_lock_after_the_next_one(two: Two) -> None:
    """restic is stopped with its lock, and killed with the process that started it."""
    binary = two.wrapper('echo $$ >"$0.pid"; exec restic "$@" --limit-upload=1')
    program = (
        "import sys; from tests.unit.outputs.test_restic_copy import copied_by; copied_by(*sys.argv[1:])"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(two.directory), binary]) as process:
        wait_until(lambda: bool(two.locks()), 30, "restic has its lock")
        pid = int(Path(f"{binary}.pid").read_text())
        os.kill(pid, signal.SIGSTOP)  # or it would remove its lock when its parent dies
        process.kill()
        process.wait()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "restic has ended")
    assert len(two.locks()) == 1
    assert list((two.directory / "repository/locks").iterdir()) == [], "none in the repository itself"
    assert two.copy().copy((), Recorder()).copied == 2
    assert two.locks() == []


def test_a_lock_that_another_command_left_in_the_copy_is_looked_for_too(two: Two) -> None:
    copy, records = two.copy(), records_in(two.settings.runtime_dir)
    one = ChildRecord.for_child(os.getpid(), "shared", 0.0, copy.target.program.place)
    records.write(replace(one, leader=ProcessId(1 << 22, 5), ended=1.0))
    copy.copy((), Recorder())
    assert [*records.read()] == []


def copied_by(directory: str, binary: str) -> None:
    """Copy, in a process of its own."""
    path = Path(directory)
    repository = Repository(path)
    given = settings(
        restic_binary=binary,
        restic_repository=str(repository.path),
        restic_password_file=str(repository.password_file),
        restic_options=["--no-cache"],
        copy_repository=str(path / "second"),
        runtime_dir=str(path / "run"),
        state_dir=str(path / "state"),
    )
    RepositoryCopy.from_settings(given, never_stop).copy((), Recorder())


def test_a_second_copy_at_the_same_time_is_refused(two: Two) -> None:
    slow = two.copy(two.wrapper('touch "$0.began"; until [ -e "$0.end" ]; do sleep 0.05; echo; done'))
    with ThreadPoolExecutor() as threads:
        first = threads.submit(slow.copy, (), Recorder())
        wait_until((two.directory / "wrapper.began").exists, 30, "the first one copies")
        with raises("another copy is active on this node", AlreadyRunning):
            two.copy().copy((), Recorder())
        (two.directory / "wrapper.end").touch()
        assert first.result(60).copied == 2


def environment_of(copy: RepositoryCopy) -> dict[str, str]:
    program: Program = copy._program
    return program._environment()


def test_restic_gets_both_places_and_passwords_in_its_environment(two: Two) -> None:
    environment = environment_of(two.copy())
    assert environment["RESTIC_REPOSITORY"] == str(two.directory / "second")
    assert environment["RESTIC_FROM_REPOSITORY"] == str(two.first.path)
    same = str(two.first.password_file)
    assert (environment["RESTIC_PASSWORD_FILE"], environment["RESTIC_FROM_PASSWORD_FILE"]) == (same, same)


def test_each_has_the_password_that_its_settings_give(two: Two) -> None:
    changes: dict[str, Any] = {
        "restic_environment": {"RESTIC_PASSWORD": "one", "B2_KEY": "b"},
        "restic_password_file": "",
    }
    own = environment_of(two.copy(**changes, copy_environment={"RESTIC_PASSWORD": "two"}))
    assert (own["RESTIC_FROM_PASSWORD"], own["RESTIC_PASSWORD"], own["B2_KEY"]) == ("one", "two", "b")
    same = environment_of(two.copy(**changes))
    assert (same["RESTIC_FROM_PASSWORD"], same["RESTIC_PASSWORD"]) == ("one", "one")
    of_file = environment_of(two.copy(**changes, copy_password_file=str(two.first.password_file)))
    assert "RESTIC_PASSWORD" not in of_file
    assert of_file["RESTIC_FROM_PASSWORD"] == "one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copy_repository": ""}, "COPY_REPOSITORY is not set"),
        ({"copy_repository": "SAME"}, "COPY_REPOSITORY is RESTIC_REPOSITORY"),
        (
            {"restic_environment": {"B2_KEY": "a"}, "copy_environment": {"B2_KEY": "b"}},
            "B2_KEY differs in RESTIC_ENVIRONMENT and COPY_ENVIRONMENT",
        ),
        (
            {"copy_password_file": "/nowhere/password"},
            "COPY_PASSWORD_FILE /nowhere/password: no such file or directory",
        ),
    ],
)
def test_settings_that_cannot_work_are_an_error(two: Two, changes: dict[str, Any], message: str) -> None:
    if changes.get("copy_repository") == "SAME":
        changes = {"copy_repository": str(two.first.path)}
    with raises(message, ConfigError):
        two.copy(**changes)


def test_check_tells_what_is_wrong_with_the_copy(two: Two) -> None:
    assert [one.problem for one in examine_copy(two.settings, never_stop)] == [None]
    assert not [*examine_copy(two.changed(copy_repository=""), never_stop)]
    shutil.rmtree(two.directory / "second")
    (found,) = examine_copy(two.settings, never_stop)
    assert found.problem
    assert "unable to open config file" in found.problem.message
    with pytest.raises(BackupError, match=r"^the copy: restic "):
        two.copy().copy((), Recorder())


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_record(str(tmp_path)) is None
    for content in ("{", "[]", json.dumps({"began": "x", "finished": "y"}), json.dumps({"new": 1})):
        (tmp_path / "copy.json").write_text(content)
        assert read_record(str(tmp_path)) is None
