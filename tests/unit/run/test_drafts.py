"""backup/run/drafts.py and atomic_file.py: drafts of killed writers are removed, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from backup.run.cleanup import clean_node
from backup.run.run import Run
from backup.settings import Settings
from backup.stored import StoredPoint
from backup.system import atomic_file
from backup.system.stop_request import StopRequest

from ..driver_node import node_uri
from ..jobs_on_paper import NoOutput
from ..recorder import Recorder
from ..samples import RUN, UUID, settings
from ..waiting import wait_until

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from backup.system.atomic_file import write_atomically
os.replace = lambda *_: signal.pause()
write_atomically(Path(sys.argv[1]), b"{")
"""
DRAFTS = (
    f"run/held/.{UUID}.json.abcdefgh",
    f"run/hooked/.{UUID}.json.a_0bcdef",
    "state/.proofs.json.12345678",
    "state/.known-points.json.12345678",
    "state/.not-started.json.12345678",
    "state/.copy.json.12345678",
    "state/.restic-key-0123456789abcdef.12345678",
    f"state/reports/.{RUN}.json.gz.abcdefgh",
    f"state/manifests/.{UUID}.0123abcd.abcdefgh",
    "shared/.report.json.abcdefgh",
    "shared/.backup.prom.abcdefgh",
)
OTHERS = (
    f"run/held/{UUID}.json",
    f"run/held/.{UUID}.json.abcdefghi",
    f"state/manifests/{UUID}.0123abcd",
    "state/groups/.copy.json.12345678",
    "state/.other.json.abcdefgh",
    "state/reports/.notes.json.gz.abcdefgh",
    "shared/.report.json.ABCDEFGH",
    "shared/.other.prom.abcdefgh",
    "shared/report.json.abcdefgh",
    "shared/.report-json.abcdefgh",
)


class Quiet(NoOutput):
    """Holds nothing."""

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return []

    def discard(self, *_: object) -> None:
        """Has nothing to discard."""


def put(path: Path, age: float) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text("{")
    os.utime(path, (time.time() - age,) * 2)


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """The settings of a node where drafts of yesterday lie about, and what may look like them."""
    for name in (*DRAFTS, *OTHERS):
        put(tmp_path / name, 86400)
    put(tmp_path / "state/.proofs.json.newnewne", 60)
    (tmp_path / "shared/.report.json.director").mkdir()
    (tmp_path / "run").chmod(0o700)
    return settings(
        libvirt_uri=node_uri(tmp_path / "node.xml"),
        runtime_dir=str(tmp_path / "run"),
        state_dir=str(tmp_path / "state"),
        report_file=str(tmp_path / "shared/report.json"),
        metrics_file=str(tmp_path / "shared/backup.prom"),
    )


def assert_drafts_alone_are_gone(directory: Path) -> None:
    assert [name for name in DRAFTS if (directory / name).exists()] == []
    assert [name for name in OTHERS if not (directory / name).exists()] == []
    assert (directory / "state/.proofs.json.newnewne").exists(), "its writer may be alive"
    assert (directory / "shared/.report.json.director").exists()


def test_cleanup_removes_the_drafts_of_killed_writers(
    chosen: Settings, recorder: Recorder, tmp_path: Path
) -> None:
    for name in OTHERS[:1]:  # it is no note of a guest
        (tmp_path / name).unlink()
    clean_node(chosen, recorder, StopRequest())
    put(tmp_path / OTHERS[0], 86400)
    assert_drafts_alone_are_gone(tmp_path)


def test_a_run_removes_them_when_it_begins(chosen: Settings, recorder: Recorder, tmp_path: Path) -> None:
    Run(chosen, Quiet(), recorder, StopRequest(), RUN).back_up(())
    assert_drafts_alone_are_gone(tmp_path)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The draft that a writer left that was killed in the middle of it."""
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "proofs.json")]
    with subprocess.Popen(command) as writer:
        wait_until(lambda: list(tmp_path.glob(".*")), 10, "the draft")
        writer.send_signal(signal.SIGKILL)
    (draft,) = tmp_path.glob(".*")
    return draft


@pytest.mark.parametrize("names", [r"proofs\.json", ".+"])
def test_the_draft_of_a_killed_writer_is_removed_at_once(killed: Path, names: str) -> None:
    atomic_file.remove_drafts(killed.parent, names)
    assert not killed.exists()


def test_a_draft_with_an_unknown_writer_is_removed_when_it_is_old(killed: Path) -> None:
    number = killed.name.split(".")[3].split("-")[0]
    elsewhere = killed.rename(killed.with_name(killed.name.replace(number, str(int(number) + 1))))
    atomic_file.remove_drafts(elsewhere.parent, r"proofs\.json")
    assert elsewhere.exists(), "it is new"
    os.utime(elsewhere, (time.time() - 601,) * 2)
    atomic_file.remove_drafts(elsewhere.parent, r"proofs\.json")
    assert not elsewhere.exists()


def test_the_draft_of_a_writer_that_lives_stays_however_old_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "proofs.json")]
    with subprocess.Popen(command) as writer:
        wait_until(lambda: list(tmp_path.glob(".*")), 10, "the draft")
        (draft,) = tmp_path.glob(".*")
        os.utime(draft, (0, 0))
        atomic_file.remove_drafts(tmp_path, r"proofs\.json")
        assert draft.exists()
        writer.kill()


def test_a_directory_that_does_not_exist_has_no_drafts(tmp_path: Path) -> None:
    atomic_file.remove_drafts(tmp_path / "nowhere", "x")
