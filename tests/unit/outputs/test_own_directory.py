"""own_directory.py: what a directory shows without restic, also where its file system hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.errors import Interrupted
from backup.system.stop_request import StopRequest
from outputs.restic import Restic
from outputs.restic_repository import own_directory
from outputs.restic_repository.messages import ResticError
from outputs.restic_repository.own_directory import OwnDirectory

from ..raising import raises
from ..repository import Repository


def test_an_empty_directory_of_locks_is_recognized_without_restic(repository: Repository) -> None:
    program = replace(repository.program(), options=())
    assert not OwnDirectory(program).may_have_locks
    (repository.path / "locks" / ("0" * 64)).touch()
    assert OwnDirectory(program).may_have_locks


@pytest.mark.parametrize(
    "other",
    [
        {"repository": "sftp:host:/backups"},
        {"repository": "/nowhere"},
        {"repository": ""},
        {"options": ("--repo=/elsewhere",)},
        {"environment": {"RESTIC_REPOSITORY": "/elsewhere"}},
    ],
)
def test_a_directory_that_cannot_be_read_may_have_locks(repository: Repository, other: Any) -> None:
    program = replace(repository.program(), **{"options": (), **other})
    assert OwnDirectory(program).may_have_locks


@pytest.fixture
def hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file system that does not answer, as NFS without its server."""
    over = threading.Event()
    monkeypatch.setattr(Path, "is_dir", lambda _: over.wait(30))
    yield
    over.set()


@pytest.mark.parametrize(
    "call",
    [
        lambda output, check_stop: output.ready(check_stop),
        lambda output, check_stop: output.holds("/srv", check_stop),
    ],
)
def test_a_stop_is_heard_while_the_file_system_hangs(
    call: Callable[[Restic, Callable[[], None]], object], repository: Repository, hangs: None
) -> None:
    stop = StopRequest()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        call(Restic(replace(repository.program(), options=())), stop.check)
    assert time.monotonic() - began < 5


def test_a_repository_that_is_no_path_is_not_looked_for_on_this_node(
    repository: Repository, hangs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_directory, "ANSWER_LIMIT", 0.1)
    url = "rest:https://user:secret@host/"
    assert OwnDirectory(replace(repository.program(), options=(), repository=url)).locks is None


def test_a_file_system_that_hangs_is_a_transient_error(
    repository: Repository, hangs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_directory, "ANSWER_LIMIT", 0.1)
    own = OwnDirectory(replace(repository.program(), options=()))
    with pytest.raises(ResticError, match=f"{repository.path} does not answer: no answer within") as caught:
        assert own.locks
    assert caught.value.transient
    assert (own.has_one_key, own.may_have_locks) == (False, True)
