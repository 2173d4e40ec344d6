"""backup/watch/node_lock.py: one run on a node, in a directory that other users cannot access."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from backup.errors import AlreadyRunning, BackupError
from backup.watch import node_lock
from backup.watch.node_lock import as_watchdog, only_run, prepare_runtime_dir

from ..raising import raises


def test_only_its_owner_can_access_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "run" / "virt-rbd-backup"
    prepare_runtime_dir(str(path))
    prepare_runtime_dir(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o777])
def test_a_directory_that_other_users_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    message = f"other users can access {tmp_path} (owner {os.geteuid()}, mode {mode:04o})"
    with raises(message) as caught:
        prepare_runtime_dir(str(tmp_path))
    assert caught.value.hint.startswith(f"chmod 0700 {tmp_path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(BackupError, match="owner 12345"):
        prepare_runtime_dir(str(tmp_path))


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises(f"cannot create {tmp_path}/file/run: not a directory"):
        prepare_runtime_dir(str(tmp_path / "file" / "run"))


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    with only_run(path), raises("another run is active on this node", AlreadyRunning), only_run(path):
        raise AssertionError("the block must not begin")
    with only_run(path):
        pass


def test_a_killed_run_does_not_block_the_next_one(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    program = (
        "import os\nfrom backup.watch.node_lock import only_run\n"
        f"with only_run({path!r}): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == -9
    with only_run(path):
        pass


@pytest.fixture(params=["of a killed run", "of nobody"])
def owner(request: pytest.FixtureRequest) -> str:
    """What is in the lock's file as long as its owner has not written itself."""
    with subprocess.Popen(["true"]) as ended:
        return str(ended.pid) if request.param == "of a killed run" else ""


def test_a_watchdog_that_has_not_written_its_name_yet_is_waited_for(
    tmp_path: Path, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has just locked the file, in which a dead run's process id still is."""
    path = str(tmp_path / "run")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            holds.close()

    with ExitStack() as holds:
        prepare_runtime_dir(path)
        assert holds.enter_context(as_watchdog(path))
        Path(path, "run.lock").write_text(owner)
        monkeypatch.setattr(time, "sleep", wait)
        with only_run(path):
            assert len(waits) == 2


def test_an_owner_that_is_not_known_for_long_is_another_run(
    tmp_path: Path, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one in another container, or one that could not write its process id."""
    path = str(tmp_path / "run")
    monkeypatch.setattr(node_lock, "OWNER_LIMIT", 0.2)
    with only_run(path):
        Path(path, "run.lock").write_text(owner)
        with raises("another run is active on this node", AlreadyRunning), only_run(path):
            raise AssertionError("the block must not begin")
