"""backup/instant_restore/socket_directory.py: no record of a killed restore names the next one's socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from backup.instant_restore.given import Given
from backup.instant_restore.socket_directory import socket_directory
from backup.restore.written_files import DIRECTORY, Written, WrittenFiles

from ..recorder import Recorder
from ..samples import URI


def _given(tmp_path: Path) -> Any:
    """A restore of web, whose directory is that of the one before."""
    hypervisor = SimpleNamespace(uri=URI, needed_paths=lambda: ())
    domain = SimpleNamespace(name="web", state_dir=str(tmp_path / "state"), hypervisor=hypervisor)
    directory = tmp_path / "drill"
    return SimpleNamespace(
        domain=domain,
        reporter=Recorder(),
        directory=lambda _: directory,
        socket=lambda _: str(directory / "nbd"),
    )


def _records(tmp_path: Path) -> list[str]:
    """The paths that the records have, which a later cleanup would remove."""
    paths = sorted((tmp_path / "state" / DIRECTORY).glob("*.json"))
    return [path for one in paths for path in json.loads(one.read_text().splitlines()[-1])["own"]]


def test_what_a_killed_restore_left_is_removed_before_the_same_socket_is_made_again(tmp_path: Path) -> None:
    given = _given(tmp_path)
    address = tmp_path / "drill" / "nbd"
    address.parent.mkdir()
    address.touch()
    killed = Written("web", socket.gethostname(), URI, "", [str(address)], (), [str(address.parent)])
    WrittenFiles(killed, Recorder(), str(tmp_path / "state")).close()
    assert _records(tmp_path) == [str(address)]
    with socket_directory(cast(Given, given), cast(Any, None)) as path:
        assert not address.exists()
        assert _records(tmp_path) == [path]
    assert _records(tmp_path) == []
    assert not address.parent.exists()
