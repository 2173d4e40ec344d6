"""outputs/directory.py: each restore point is what its run has seen, in files that QEMU alone reads."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.run.prune import prune
from backup.stored import PointId, SavedDomain
from backup.system.started_program import StartedProgram
from backup.system.stop_request import StopRequest
from backup.system.time_limit import never_stop
from backup.verify.verification import Verification
from outputs import chosen, readable
from outputs.directory import Directory
from outputs.directory_repository import nbd_server
from outputs.directory_repository.domain_directory import DomainDirectory
from outputs.directory_repository.locks import exclusive
from outputs.directory_repository.nbd_connection import NbdConnection
from outputs.own_points.in_use import PointInUse

from ..recorder import Recorder
from ..samples import MIB, UUID, settings
from .directory_samples import chain_of, content_of, directory, files, qemu_img, rounded_up
from .saved_samples import FIRST, RUNS, SECOND, THIRD, complete, read_back, save

KINDS = pytest.mark.parametrize("kind", ["qcow2", "raw"])


@pytest.fixture
def output(tmp_path: Path) -> Directory:
    return directory(tmp_path)


def verified(output: Directory, tmp_path: Path, at: str = "latest") -> bool:
    of_test = settings(state_dir=str(tmp_path / "state"), workers=1)
    verification = Verification(of_test, output, Recorder(), StopRequest(), 1.0)
    return not verification.verify(["web"], at).failed


def disk(output: Directory, run: str, target: str = "vda") -> Path:
    return output.root / UUID / run / f"{target}.{output.kind}"


@KINDS
def test_what_is_saved_is_listed_and_restored_byte_for_byte(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], FIRST)
    (point,) = output.ready()
    assert (point.id, point.domain, point.consistency) == (PointId(RUNS[0], UUID), "web", "filesystem")
    assert [(one.target, one.size) for one in point.images] == [("vda", 9 * MIB + 513), ("vdb", 4 * MIB)]
    assert output.last_saved(UUID) == point.taken
    order = RestoreOrder("web", disks=("vda",), to_file=str(tmp_path / "back.img"))
    Restorer(order, settings(), output, Recorder(), StopRequest()).restore()
    assert (tmp_path / "back.img").read_bytes() == FIRST["vda"]
    assert verified(output, tmp_path)
    found = content_of(output, RUNS[0], tmp_path / "scratch")
    assert found == (rounded_up(FIRST) if kind == "qcow2" else FIRST)
    assert oct(disk(output, RUNS[0]).stat().st_mode)[-3:] == "600"
    assert list((tmp_path / "run").glob("nbd-*")) == []


@KINDS
def test_a_disk_without_a_byte_is_saved_too(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], {"vda": b"", "vdb": b"x"})
    assert read_back(output, complete(output)[RUNS[0]]) == {"vda": b"", "vdb": b"x"}
    assert verified(output, tmp_path)


@KINDS
def test_holes_take_no_space(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], {"vda": bytes(40 * MIB) + b"end"})
    assert disk(output, RUNS[0]).stat().st_blocks * 512 < MIB


def test_later_runs_save_what_has_changed_and_all_points_stay_readable(
    output: Directory, tmp_path: Path
) -> None:
    first = save(output, RUNS[0], FIRST)
    second = save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    save(output, RUNS[2], THIRD, (RUNS[1], SECOND))
    points = complete(output)
    for run, disks in ((RUNS[0], FIRST), (RUNS[1], SECOND), (RUNS[2], THIRD)):
        assert read_back(output, points[run]) == disks
        assert content_of(output, run, tmp_path / "scratch") == rounded_up(disks)
        assert verified(output, tmp_path, run)
    assert second[1].read_bytes == 4 * MIB
    assert first[0].full_read == second[0].full_read
    assert chain_of(disk(output, RUNS[2])) == [RUNS[2], RUNS[1], RUNS[0]]


def test_an_unchanged_disk_takes_next_to_nothing(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    images = save(output, RUNS[1], FIRST, (RUNS[0], FIRST))
    assert [(one.read_bytes, one.stored_bytes) for one in images] == [(0, 0), (0, 0)]
    assert disk(output, RUNS[1]).stat().st_blocks * 512 < 400 << 10


def test_a_raw_point_is_complete_and_builds_on_nothing(tmp_path: Path) -> None:
    output = directory(tmp_path, "raw")
    assert not output.keeps_base_snapshots
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND)
    output.withdraw([PointId(RUNS[0], UUID)])
    assert read_back(output, complete(output)[RUNS[1]]) == SECOND


def test_without_a_base_snapshot_everything_is_read_but_only_what_differs_written(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    (vda, vdb) = save(output, RUNS[1], {**FIRST, "vdb": SECOND["vdb"]})
    assert vda.stored_bytes == 0 < vdb.stored_bytes
    assert vda.full_read != save(output, RUNS[2], FIRST, (RUNS[0], FIRST))[0].full_read
    assert chain_of(disk(output, RUNS[1])) == [RUNS[1], RUNS[0]]
    assert read_back(output, complete(output)[RUNS[1]]) == {**FIRST, "vdb": SECOND["vdb"]}


@pytest.mark.parametrize("chain", [0, 1, 2])
def test_the_chain_of_files_is_limited(chain: int, tmp_path: Path) -> None:
    output = directory(tmp_path, chain=chain)
    before: Optional[tuple[str, dict[str, bytes]]] = None
    for number, run in enumerate(RUNS[:5]):
        save(output, run, {"vda": FIRST["vda"]}, before)
        before = run, {"vda": FIRST["vda"]}
        assert len(chain_of(disk(output, run))) == number % (chain + 1) + 1
    assert all(read_back(output, one)["vda"] == FIRST["vda"] for one in complete(output).values())


def test_a_point_that_others_build_on_is_folded_into_the_next_one(output: Directory, tmp_path: Path) -> None:
    contents = {RUNS[0]: FIRST, RUNS[1]: SECOND, RUNS[2]: THIRD, RUNS[3]: FIRST}
    before = None
    for run, disks in contents.items():
        save(output, run, disks, before)
        before = run, disks
    for run in (RUNS[0], RUNS[2], RUNS[1]):
        output.withdraw([PointId(run, UUID)])
        del contents[run]
        assert [one.id.run for one in output.restore_points()] == [*contents]
        assert chain_of(disk(output, RUNS[3])) == [*contents][::-1]
        for left, disks in contents.items():
            assert read_back(output, complete(output)[left]) == disks
            assert content_of(output, left, tmp_path / "scratch") == rounded_up(disks)
            assert verified(output, tmp_path, left)
    assert {name.split("/")[1] for name in files(output) if "/" in name} == {".lock", RUNS[3]}


def test_what_an_image_had_before_it_shrank_does_not_come_back(output: Directory, tmp_path: Path) -> None:
    sizes = (3 * MIB, MIB + 4097, 2 * MIB, MIB + 512, 3 * MIB)
    contents = {run: {"vda": b"x" * MIB + bytes(size - MIB)} for run, size in zip(RUNS, sizes)}
    contents[RUNS[0]] = {"vda": b"old!" * (3 * MIB // 4)}
    before = None
    for run, disks in contents.items():
        save(output, run, disks, before)
        before = run, disks
    for run in RUNS[:4]:
        output.withdraw([PointId(run, UUID)])
        del contents[run]
        for left, disks in contents.items():
            assert content_of(output, left, tmp_path / "scratch") == rounded_up(disks), f"{left} after {run}"


def test_what_several_build_on_stays_until_one_does(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    save(output, RUNS[2], THIRD, (RUNS[0], FIRST))
    output.withdraw([PointId(RUNS[0], UUID)])
    assert disk(output, RUNS[0]).exists()
    assert [one.id.run for one in output.restore_points()] == [RUNS[1], RUNS[2]]
    output.withdraw([PointId(RUNS[1], UUID)])
    assert not disk(output, RUNS[0]).parent.exists()
    assert read_back(output, complete(output)[RUNS[2]]) == THIRD
    assert chain_of(disk(output, RUNS[2])) == [RUNS[2]]


def test_a_withdrawn_point_is_gone_and_the_next_run_builds_on_the_one_before(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    output.withdraw([PointId(RUNS[1], UUID)])
    assert [*complete(output)] == [RUNS[0]]
    save(output, RUNS[2], THIRD, (RUNS[0], FIRST))
    assert read_back(output, complete(output)[RUNS[0]]) == FIRST
    assert read_back(output, complete(output)[RUNS[2]]) == THIRD


@KINDS
def test_with_the_last_point_nothing_is_left(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], FIRST)
    output.withdraw([PointId(RUNS[0], UUID)])
    assert files(output) == []
    output.withdraw([PointId(RUNS[0], UUID)])


def test_a_complete_point_is_not_discarded(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    output.discard([PointId(RUNS[0], UUID)], wait_if_busy=False)
    assert [*complete(output)] == [RUNS[0]]


@KINDS
def test_a_point_that_is_read_stays(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], FIRST)
    (point,) = complete(output).values()
    with output.opened(point, lambda: None) as opened:
        with pytest.raises(PointInUse, match="is in use"):
            output.withdraw([point.id])
        opened.check()
        saved: SavedDomain = manifest.unpack(opened.manifest())
        assert opened.image(saved.images[0]).read(5 * MIB - 4, 10) == FIRST["vda"][5 * MIB - 4 :][:10]
    assert [*complete(output)] == [RUNS[0]]


def test_who_opens_a_point_that_is_gone_is_told(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], FIRST)
    first = complete(output)[RUNS[0]]
    output.withdraw([first.id])
    with pytest.raises(BackupError, match="was removed"), output.opened(first, lambda: None):
        raise AssertionError


def test_an_open_point_whose_files_vanish_is_noticed(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    (point,) = complete(output).values()
    with output.opened(point, lambda: None) as opened:
        shutil.rmtree(output.root / UUID / RUNS[0])
        with pytest.raises(BackupError, match="was removed"):
            opened.check()


@KINDS
def test_a_flipped_byte_is_found_by_verification(kind: str, tmp_path: Path) -> None:
    output = directory(tmp_path, kind)
    save(output, RUNS[0], FIRST)
    path = disk(output, RUNS[0])
    data = path.read_bytes()
    assert data.count(b"across") == 1
    path.write_bytes(data.replace(b"across", b"acrosS"))
    assert not verified(output, tmp_path)


def test_a_file_of_another_size_is_refused(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    shutil.copyfile(disk(output, RUNS[0], "vdb"), disk(output, RUNS[0]))
    with pytest.raises(BackupError, match=r"vda.qcow2 has 4194304 bytes, its manifest 9502720"):
        read_back(output, complete(output)[RUNS[0]])


@pytest.mark.parametrize("damage", ["lost", "foreign"])
def test_a_damaged_restore_point_costs_the_next_backup_a_full_copy(
    output: Directory, tmp_path: Path, damage: str
) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    if damage == "lost":
        disk(output, RUNS[0]).unlink()
    else:
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", disk(output, RUNS[1]))
    save(output, RUNS[2], THIRD, (RUNS[1], SECOND))
    assert chain_of(disk(output, RUNS[2])) == [RUNS[2]]
    assert content_of(output, RUNS[2], tmp_path / "scratch") == rounded_up(THIRD)


@pytest.mark.parametrize(
    "path", ["../../vda.raw", f"{UUID}/../vda.raw", f"{UUID}/{RUNS[0]}/shadow", "/x/vda.raw"]
)
def test_a_forged_manifest_names_no_file_elsewhere(output: Directory, path: str) -> None:
    save(output, RUNS[0], FIRST)
    saved: SavedDomain = manifest.unpack(output.manifest(complete(output)[RUNS[0]]))
    forged = replace(saved.images[0], restore_id=path)
    with pytest.raises(BackupError, match="is no image of a restore point"), output.image(forged, never_stop):
        raise AssertionError


FOREIGN = {
    "of any path": ("/etc/passwd", "raw", "builds on /etc/passwd, which is no restore point"),
    "of an address": ("nbd://192.0.2.1/x", "raw", "builds on nbd://192.0.2.1/x, which is no restore point"),
    "beside the domain": ("../../vda.qcow2", "qcow2", "builds on ../../vda.qcow2, which is no restore point"),
    "itself": (f"../{RUNS[1]}/vda.qcow2", "qcow2", "builds on itself"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_builds_on_another_than_the_domain_s_is_not_read(output: Directory, case: str) -> None:
    backing, kind, message = FOREIGN[case]
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", backing, "-F", kind, disk(output, RUNS[1]))
    with pytest.raises(BackupError, match=message):
        read_back(output, complete(output)[RUNS[1]])


def test_a_file_with_its_data_elsewhere_and_a_link_are_not_read(output: Directory, tmp_path: Path) -> None:
    save(output, RUNS[0], FIRST)
    data = f"data_file={tmp_path}/data,data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", data, disk(output, RUNS[0]), 9 * MIB)
    with pytest.raises(BackupError, match=r"vda.qcow2 has its data in another file"):
        read_back(output, complete(output)[RUNS[0]])
    disk(output, RUNS[0]).rename(tmp_path / "elsewhere")
    disk(output, RUNS[0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackupError, match=r"vda.qcow2 is no regular file"):
        read_back(output, complete(output)[RUNS[0]])


@pytest.mark.parametrize("entry", ["{", "", None])
def test_a_damaged_or_lost_entry_costs_nothing(output: Directory, entry: Optional[str]) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    before = output.restore_points()
    path = output.root / UUID / RUNS[0] / "point.json"
    path.unlink()
    if entry is not None:
        path.write_text(entry)
    first, second = output.restore_points()
    assert [replace(first, node="node1"), second] == before
    assert read_back(output, complete(output)[RUNS[0]]) == FIRST


def test_a_run_without_room_fails_before_it_writes_and_leaves_nothing(
    output: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 300, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(BackupError, match=r"vd. \(vms/vd.\) needs .*, .* has room for 1.2 MiB"):
        save(output, RUNS[0], FIRST)
    assert files(output) == []


@KINDS
def test_a_directory_that_vanishes_fails_the_domain(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = directory(tmp_path, kind)
    monkeypatch.setattr(
        "outputs.directory_repository.saved_disk.require_room", lambda *_: shutil.rmtree(output.root)
    )
    with pytest.raises(BackupError, match=r"cannot create .*is the file system of DIRECTORY_OUTPUT mounted"):
        save(output, RUNS[0], {"vda": FIRST["vda"]})
    assert not output.root.exists()
    with pytest.raises(BackupError, match=r"cannot read .*: no such file or directory"):
        output.ready()


def test_a_base_that_vanishes_fails_the_backup(output: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    save(output, RUNS[0], FIRST)
    write = DomainDirectory.write_manifest

    def removed(domain: DomainDirectory, *arguments: Any) -> None:
        write(domain, *arguments)
        shutil.rmtree(domain.final(RUNS[0]))

    monkeypatch.setattr(DomainDirectory, "write_manifest", removed)
    with pytest.raises(BackupError, match=r"cannot read .*vda.qcow2: no such file or directory"):
        save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    assert output.restore_points() == []


def test_what_a_killed_process_left_in_the_runtime_directory_is_removed(
    output: Directory, tmp_path: Path
) -> None:
    (tmp_path / "run" / "nbd-left").mkdir(parents=True, mode=0o700)
    (tmp_path / "run" / "nbd-left" / "socket").touch()
    save(output, RUNS[0], {"vda": b"x"})
    assert list((tmp_path / "run").glob("nbd-*")) == []


def test_a_server_that_is_killed_fails_the_domain_and_nothing_is_left(
    output: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[StartedProgram] = []
    started, start_write = nbd_server._started, NbdConnection.start_write

    def recorded(*arguments: Any) -> StartedProgram:
        servers.append(started(*arguments))
        return servers[-1]

    def killed(*arguments: Any) -> Callable[[], None]:
        servers[-1].kill()
        servers[-1].wait()
        return start_write(*arguments)

    monkeypatch.setattr(nbd_server, "_started", recorded)
    monkeypatch.setattr(NbdConnection, "start_write", killed)
    with pytest.raises(TransientError, match=r"qemu-nbd failed on .*vda.qcow2: the connection"):
        save(output, RUNS[0], {"vda": FIRST["vda"]})
    assert files(output) == []


def test_a_stale_handle_of_a_file_server_is_transient(
    output: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(output, RUNS[0], FIRST)

    def stale(_: object) -> list[str]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(TransientError, match=r"cannot read .*: stale file handle .*mounted"):
        output.restore_points()


@pytest.mark.parametrize(("step", "remove"), [("remove_partial", "discard"), ("remove_manifest", "withdraw")])
def test_a_removal_that_the_file_server_does_not_answer_can_be_stopped(
    output: Directory, monkeypatch: pytest.MonkeyPatch, step: str, remove: str
) -> None:
    save(output, RUNS[0], FIRST)
    DomainDirectory(output.root, UUID).begin(RUNS[1])
    hangs, answers, answered = threading.Event(), threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hangs.set()
        answers.wait(5)
        answered.set()
        raise BackupError("the file server is back")

    def stop_while_it_hangs() -> None:
        if hangs.is_set():
            raise Interrupted("interrupted", signal.SIGTERM)

    monkeypatch.setattr(DomainDirectory, step, hang)
    point = PointId(RUNS[0 if remove == "withdraw" else 1], UUID)
    options = {"wait_if_busy": False} if remove == "discard" else {}
    with pytest.raises(Interrupted):
        getattr(output, remove)([point], check_stop=stop_while_it_hangs, **options)
    assert not answered.is_set()
    answers.set()
    assert answered.wait(5)


def test_the_program_that_is_missing_is_named(output: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = output.problems()
    assert (problem.message, problem.hint) == (
        "qemu-img and qemu-nbd not installed",
        "apt-get install qemu-utils",
    )


def test_a_fold_that_another_program_prevents_is_left_to_the_next_time(
    output: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))

    def refused(*_: object) -> None:
        raise BackupError('Failed to get "write" lock\nIs another process using the image [/x]?')

    with monkeypatch.context() as patch:
        patch.setattr(DomainDirectory, "commit_into", refused)
        with pytest.raises(PointInUse, match="in use by another program"):
            output.withdraw([PointId(RUNS[0], UUID)])
    incomplete, _ = output.restore_points()
    assert (incomplete.id.run, incomplete.manifest_id, incomplete.removed) == (RUNS[0], "", True)
    output.discard([incomplete.id], wait_if_busy=True)
    assert [one.id.run for one in output.restore_points()] == [RUNS[1]]
    assert chain_of(disk(output, RUNS[1])) == [RUNS[1]]


def test_prune_completes_a_removal_and_leaves_what_a_run_may_be_saving(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    domain = DomainDirectory(output.root, UUID)
    domain.remove_manifest(RUNS[0])  # here a removal was killed
    domain.begin(RUNS[1])
    of_test = settings(output="directory")
    assert [one.point.id.run for one in prune(of_test, output, Recorder(), never_stop)] == [RUNS[0]]
    assert [(one.id.run, one.removed) for one in output.restore_points()] == [(RUNS[1], False)]
    assert not domain.final(RUNS[0]).exists()


def test_the_settings_are_checked() -> None:
    (error,) = Directory.from_settings(settings(directory_output="")).configuration_errors()
    assert error.message == "DIRECTORY_OUTPUT is not set"


def test_both_commands_that_save_and_that_read_get_this_output() -> None:
    of_test = settings(output="directory", directory_output="/srv/backups", directory_format="raw")
    output = chosen(of_test)
    assert isinstance(output, Directory)
    assert output == readable(of_test)
    assert (str(output.root), output.kind, output.chain) == ("/srv/backups", "raw", 14)
    assert not output.configuration_errors()


def test_a_path_within_the_directory_is_known(output: Directory, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output.root)
    assert output.holds(str(tmp_path / "link" / "below"))
    assert not output.holds(str(tmp_path))


def test_another_process_that_removes_is_waited_for(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    (point,) = complete(output).values()
    domain = DomainDirectory(output.root, UUID)
    with (
        exclusive(domain),
        pytest.raises(BackupError, match=r"is locked: for 0 s.*LOCK_WAIT"),
        replace(output, lock_wait=0).opened(point, lambda: None),
    ):
        raise AssertionError
    assert os.path.exists(domain.path / ".lock")


def test_a_raw_file_is_complete_even_if_there_is_a_base_snapshot(output: Directory, tmp_path: Path) -> None:
    save(output, RUNS[0], FIRST)
    raw = replace(output, kind="raw")
    save(raw, RUNS[1], SECOND, (RUNS[0], FIRST))
    assert read_back(raw, complete(raw)[RUNS[1]]) == SECOND
    save(output, RUNS[2], THIRD, (RUNS[1], SECOND))
    assert chain_of(disk(output, RUNS[2])) == [RUNS[2]]
    assert read_back(output, complete(output)[RUNS[2]]) == THIRD
    assert verified(output, tmp_path)
