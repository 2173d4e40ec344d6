"""What holds for every unit test, and the parts that several of them use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .recorder import Recorder
from .repository import Repository
from .waiting import children, open_files


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the developer's own home and configuration out of reach."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith(("RESTIC_", "XDG_", "VIRT_RBD_BACKUP_", "JOURNAL_STREAM")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(home))  # where a restic that is killed leaves its temporary files
        yield home


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Assert that the test leaves no process and no open file."""
    before = set(children())
    files = open_files()
    yield
    assert set(children()) <= before
    assert open_files() <= files, "fewer: garbage of earlier tests"


@pytest.fixture
def signals_as_in_a_worker() -> Iterator[None]:
    """Ignore SIGINT, as backup/run/worker.py does, until the end of the test."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)
