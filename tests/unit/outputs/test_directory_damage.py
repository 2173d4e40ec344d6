"""outputs/directory.py: a full read on top of a damaged file makes a restore point that is whole."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.model import Level
from outputs.directory import Directory
from outputs.directory_repository.nbd_connection import NbdConnection

from ..jobs_on_paper import JobOnPaper
from ..recorder import Recorder
from ..samples import MIB, UUID
from .directory_samples import chain_of, content_of, directory, rounded_up
from .saved_samples import FIRST, RUNS, Disks, complete, read_back, save

NOW: dict[str, Disks] = {
    "same size": FIRST,
    "grown": {**FIRST, "vda": FIRST["vda"] + bytes(5 * MIB)},
    "shrunk": {**FIRST, "vda": FIRST["vda"][: 8 * MIB + 5]},
}
DIFFERS, UNREADABLE = "differs from what was saved: pieces at ", "cannot build on the last restore point: "


@pytest.fixture
def output(tmp_path: Path) -> Directory:
    return directory(tmp_path)


def file_of(output: Directory, run: str) -> Path:
    return output.root / UUID / run / "vda.qcow2"


def flip(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"across") == 1
    path.write_bytes(data.replace(b"across", b"acrosS"))


def qemu_io(path: Path, command: str) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)


def lose(path: Path) -> None:
    qemu_io(path, "write -z 5M 64k")
    qemu_io(path, f"write -z {5 * MIB - 65536} 64k")


def fill_a_hole(path: Path) -> None:
    qemu_io(path, "write 6M 512")


def break_the_first_cluster(path: Path) -> None:
    """Make it begin where no cluster does, which QEMU answers with EIO (docs/interop/qcow2.txt)."""
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[40:48], "big")
    second = int.from_bytes(data[first : first + 8], "big") & 0x00FFFFFFFFFFFE00
    data[second + 6] |= 2
    path.write_bytes(data)


def break_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[47] |= 1  # where the table of tables begins
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip, f"{DIFFERS}4194304; they are written anew"),
    "lost": (lose, f"{DIFFERS}4194304; they are written anew"),
    "garbage in a hole": (fill_a_hole, f"{DIFFERS}4194304; they are written anew"),
    "unreadable": (break_the_first_cluster, f"{UNREADABLE}cannot read"),
    "not to be opened": (break_the_header, f"{UNREADABLE}qemu-nbd failed on"),
}


@pytest.mark.parametrize("due", [False, True], ids=["no base snapshot", "due"])
@pytest.mark.parametrize("now", NOW.values(), ids=NOW)
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_full_read_writes_what_is_damaged_anew(
    output: Directory, tmp_path: Path, damage: Callable[[Path], None], message: str, now: Disks, due: bool
) -> None:
    save(output, RUNS[0], FIRST)
    damage(file_of(output, RUNS[0]))
    recorder = Recorder()
    days = replace(output, full_read_days=1 if due else 0)
    save(days, RUNS[1], now, (RUNS[0], FIRST) if due else None, JobOnPaper(recorder))
    assert read_back(output, complete(output)[RUNS[1]]) == now
    assert content_of(output, RUNS[1], tmp_path / "scratch") == rounded_up(now)
    errors = recorder.told(Level.ERROR)
    assert [message in text and text.startswith("vda ") for text in errors] == [True], errors
    below = [RUNS[0]] if message.startswith(DIFFERS) else []
    assert chain_of(file_of(output, RUNS[1])) == [RUNS[1], *below]


def test_a_sound_file_is_built_on_without_an_error(output: Directory) -> None:
    save(output, RUNS[0], FIRST)
    recorder = Recorder()
    for run, now in zip(RUNS[1:], NOW.values()):
        save(output, run, now, job=JobOnPaper(recorder))
    assert recorder.told(Level.ERROR) == []
    assert len(chain_of(file_of(output, RUNS[3]))) == 4


REASONS = {
    "an interruption": Interrupted("interrupted", signal.SIGTERM),
    "a lost lock": BackupError("the lock is lost"),
}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
def test_a_reason_to_stop_while_it_is_read_is_no_damage(
    output: Directory, monkeypatch: pytest.MonkeyPatch, reason: BaseException
) -> None:
    save(output, RUNS[0], FIRST)
    recorder, stopped = Recorder(), False
    job = JobOnPaper(recorder)
    start_read = NbdConnection.start_read

    def stop(*arguments: Any) -> Callable[[], bytes]:
        nonlocal stopped
        stopped = True
        return start_read(*arguments)

    def check_stop() -> None:
        if stopped:
            raise reason

    monkeypatch.setattr(NbdConnection, "start_read", stop)
    monkeypatch.setattr(job, "check_stop", check_stop)
    with pytest.raises(type(reason)) as raised:
        save(output, RUNS[1], FIRST, job=job)
    assert raised.value is reason
    assert recorder.told(Level.ERROR) == []


def test_a_file_server_that_does_not_answer_is_no_damage(
    output: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(output, RUNS[0], FIRST)

    def hangs(*_: object) -> Callable[[], bytes]:
        raise TransientError("qemu-nbd makes no progress")

    monkeypatch.setattr(NbdConnection, "start_read", hangs)
    with pytest.raises(TransientError, match="makes no progress"):
        save(output, RUNS[1], FIRST)
    assert [*complete(output)] == [RUNS[0]]
