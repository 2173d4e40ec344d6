"""A backup into a directory, and a removal, with a fault at each call that changes something, one by one."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from backup.errors import BackupError
from backup.stored import PointId
from outputs.directory import Directory
from outputs.directory_repository import new_image
from outputs.directory_repository.domain_directory import DomainDirectory
from outputs.directory_repository.errors import storage_error

from ..faulty_node import Boundary, Errors, Fault, Killed
from ..samples import MIB, UUID
from .directory_samples import chain_of, directory, files
from .saved_samples import RUNS, Disks, complete, content, read_back, save

FIRST: Disks = {
    "vda": content(4 * MIB + 100, {0: b"begin", 4 * MIB + 9: b"there"}),
    "vdb": content(MIB, {512: b"data" * 500}),
}
SECOND: Disks = {
    "vda": content(2 * MIB, {0: b"begin", 9: b"gone!", MIB: b"new"}),
    "vdb": content(2 * MIB, {9000: b"moved" * 400}),
}
THIRD: Disks = {**FIRST, "vdb": SECOND["vdb"]}
CHANGES = (
    *("create", "begin", "write_entry", "write_manifest", "commit", "remove_partial", "remove_manifest"),
    *("remove_file", "remove_point", "remove_if_empty", "commit_into", "replace"),
)
NOWHERE = Path("/nowhere")
ERRORS = Errors(
    storage_error("write", NOWHERE, errno.ENOSPC, "no space left on device"),
    storage_error("write", NOWHERE, errno.ESTALE, "stale file handle"),
)


class Faulty:
    """Routes all that changes a directory through a boundary, while there is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boundary: Optional[Boundary] = None
        for name in CHANGES:
            self._route(monkeypatch, DomainDirectory, name)
        self._route(monkeypatch, new_image._RawImage, "start_write")

    def _route(self, monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
        effect = getattr(kind, name)

        def call(*arguments: Any) -> Any:
            boundary = self.boundary
            return boundary.call(name, effect, ERRORS, *arguments) if boundary else effect(*arguments)

        monkeypatch.setattr(kind, name, call)

    def attempt(self, boundary: Boundary, *step: Any) -> Optional[BaseException]:
        """Make a call with the fault, and return what it raised; then there are no faults any more."""
        call, *arguments = step
        self.boundary = boundary
        try:
            call(*arguments)
        except (Killed, BackupError, RuntimeError) as error:
            return error
        finally:
            self.boundary = None
        return None


@pytest.mark.parametrize("earlier", [False, True], ids=["first backup", "later backup"])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_fails_the_directory_holds_whole_points_only(
    fault: Fault, earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty, number, raised = Faulty(monkeypatch), 0, None
    while True:
        number += 1
        output = replace(directory(tmp_path / str(number), "raw"), streams=1)  # so that calls are in order
        before = {RUNS[0]: FIRST} if earlier else {}
        if earlier:
            save(output, RUNS[0], FIRST)
        boundary = Boundary(fault, number)
        raised = faulty.attempt(boundary, save, output, RUNS[1], SECOND)
        if not boundary.hit:
            break
        where = f"{fault.value} at call {number}, {boundary.hit}"
        _assert_whole(output, {**before, RUNS[1]: SECOND}, before, where)
        if raised and fault not in (Fault.LOST, Fault.KILLED_AFTER):
            assert [*complete(output)] == [*before], where
        if raised and not isinstance(raised, Killed):  # the run itself removes what failed
            output.withdraw([PointId(RUNS[1], UUID)])
            assert [*complete(output)] == [*before], where
        output.discard([one.id for one in output.restore_points() if not one.manifest_id], True)
        kept = {**before, **({RUNS[1]: SECOND} if RUNS[1] in complete(output) else {})}
        assert [one.id.run for one in output.restore_points()] == [*kept], where
        assert {name.split("/")[1] for name in files(output) if "/" in name} <= {".lock", *kept}, where
        save(output, RUNS[2], THIRD)
        _assert_whole(output, {**kept, RUNS[2]: THIRD}, {**kept, RUNS[2]: THIRD}, where)
    assert number > 9
    assert raised is None


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_of_a_removal_fails_the_other_points_are_whole(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {RUNS[0]: FIRST, RUNS[1]: SECOND, RUNS[2]: THIRD}
    original = _of_one_disk(tmp_path / "original", saved)
    faulty, number = Faulty(monkeypatch), 0
    while True:
        number += 1
        output = replace(original, root=tmp_path / str(number))
        shutil.copytree(original.root, output.root)
        boundary = Boundary(fault, number)
        raised = faulty.attempt(boundary, output.withdraw, [PointId(RUNS[0], UUID)])
        if not boundary.hit:
            break
        where = f"{fault.value} at call {number}, {boundary.hit}"
        left = {run: {"vda": saved[run]["vda"]} for run in (RUNS[1], RUNS[2])}
        _assert_whole(output, {**left, RUNS[0]: {"vda": FIRST["vda"]}}, left, where)
        if raised and RUNS[0] in complete(output):
            output.withdraw([PointId(RUNS[0], UUID)])
        output.discard([one.id for one in output.restore_points() if not one.manifest_id], True)
        assert [one.id.run for one in output.restore_points()] == [*left], where
        _assert_whole(output, left, left, where)
        assert chain_of(output.root / UUID / RUNS[2] / "vda.qcow2") == [RUNS[2], RUNS[1]], where
        assert not (output.root / UUID / RUNS[0]).exists(), where
    assert number > 4


def test_a_fold_that_was_killed_halfway_is_ended_by_the_next_removal(tmp_path: Path) -> None:
    saved = {RUNS[0]: FIRST, RUNS[1]: SECOND, RUNS[2]: THIRD}
    output = _of_one_disk(tmp_path, saved)
    base = output.root / UUID / RUNS[0]
    (base / "definition.tar").unlink()
    part = tmp_path / "part"
    part.write_bytes(SECOND["vda"][:65536])
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -s {part} 0 64k", base / "vda.qcow2"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    left = {run: {"vda": saved[run]["vda"]} for run in (RUNS[1], RUNS[2])}
    _assert_whole(output, left, left, "halfway")
    output.discard([PointId(RUNS[0], UUID)], wait_if_busy=True)
    _assert_whole(output, left, left, "at the end")
    assert not base.exists()


def _of_one_disk(place: Path, saved: Mapping[str, Disks]) -> Directory:
    output = directory(place)
    before = None
    for run, disks in saved.items():
        save(output, run, {"vda": disks["vda"]}, before)
        before = run, {"vda": disks["vda"]}
    return output


def _assert_whole(
    output: Directory, possible: Mapping[str, Disks], needed: Mapping[str, Disks], where: str
) -> None:
    """All points that count are what their runs have seen, and those that are needed count."""
    points = complete(output)
    assert set(needed) <= set(points) <= set(possible), where
    for run, point in points.items():
        assert read_back(output, point) == possible[run], f"{where}: {run}"
