"""backup/files/session.py: how programs end in the middle of what they print."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup.files.debugfs import debugfs
from backup.files.ext import ExtFiles
from backup.files.session import END_LIMIT, Session, session

from ..samples import MIB
from ..waiting import children
from .guest_images import ext4
from .test_ext import content

__all__ = ["content"]

pytestmark = pytest.mark.usefixtures("nothing_left")


def seconds(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def test_a_debugfs_in_the_middle_of_a_file_ends_at_once(content: Path, tmp_path: Path) -> None:
    (content / "large").write_bytes(os.urandom(MIB) * 8)
    before = set(children())
    running = debugfs(str(ext4(tmp_path / "image", content)), 0, lambda: None)
    files = ExtFiles(running.__enter__())
    next(files.content(files.find(b"/large")))
    assert seconds(lambda: running.__exit__(None, None, None)) < END_LIMIT / 2
    assert set(children()) <= before


class Shell(Session):
    """Prints for ever; interrupted, it prints more than fits into a pipe, and cleans up at last."""

    directory: Path

    def interrupt(self) -> None:
        (self.directory / "stop").touch()


def test_a_program_that_still_prints_while_it_cleans_up_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    script = f"read line; until test -e {tmp_path}/stop; do echo part; done; seq 100000; rm {tmp_path}/kept"
    running = session(Shell, ["sh", "-c", script], lambda: None)
    shell = running.__enter__()
    shell.directory = tmp_path
    next(part for part in shell.between("go\n", "", "end") if part)
    assert seconds(lambda: running.__exit__(None, None, None)) < END_LIMIT
    assert not (tmp_path / "kept").exists()
