"""backup/hypervisor/connection.py: another node's libvirt, whose files and devices are not this node's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import libvirt
import pytest

from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.model import Definition, State

from ..disk_elements import other
from ..driver_node import domain_element, node_uri
from ..raising import raises
from ..samples import UUID, domain

Handler = Callable[[Any, bytes, Any], Optional[int]]

REMOTE = "qemu+ssh://root@node1/system"


class PaperStorage:
    """A connection to libvirt with a storage pool on paper, and everything else as `real` has it.

    The test driver can neither find a pool by its path nor hand out what a volume holds. It is its own
    pool, volume and stream.
    """

    def __init__(self, real: Any, directory: Path) -> None:
        self.real = real
        self.directory = directory
        self.files: dict[str, bytes] = {}
        self.seen: set[str] = set()  # a pool knows a new file only once it was refreshed
        self.asked = ""
        self.ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def storagePoolLookupByTargetPath(self, path: str) -> PaperStorage:  # noqa: N802
        assert path == str(self.directory)
        return self

    def refresh(self) -> None:
        self.seen = set(self.files)

    def storageVolLookupByName(self, name: str) -> PaperStorage:  # noqa: N802
        if name not in self.seen:
            self.real.storagePoolLookupByName("files").storageVolLookupByName(name)  # raises
        self.asked = name
        return self

    def newStream(self) -> PaperStorage:  # noqa: N802
        return self

    def download(self, stream: PaperStorage, offset: int, length: int) -> None:
        assert (stream, offset, length) == (self, 0, 0)

    def recvAll(self, handler: Handler, opaque: Any) -> None:  # noqa: N802
        content = self.files[self.asked]
        for start in range(0, len(content), 7):
            assert not handler(self, content[start : start + 7], opaque)

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def nvram(tmp_path: Path) -> Path:
    path = tmp_path / "web.fd"
    path.write_bytes(b"this node's file, and not the other's")
    return path


@pytest.fixture
def hypervisor(tmp_path: Path, nvram: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hypervisor]:
    """A connection to another node with one domain; in fact a test driver."""
    system = f"<loader type='pflash'>/fw.fd</loader><nvram>{nvram}</nvram>"
    disk = other("block", "<source dev='/dev/rbd0'/>")
    pool = "<pool type='dir'><name>files</name><target><path>/files</path></target></pool>"
    uri = node_uri(tmp_path / "node.xml", pool, domain_element(devices=disk, system=system))
    opened = libvirt.open
    monkeypatch.setattr(libvirt, "open", lambda _uri: opened(uri))
    with Hypervisor(REMOTE) as hypervisor:
        yield hypervisor


@pytest.fixture
def storage(hypervisor: Hypervisor, tmp_path: Path) -> PaperStorage:
    storage = PaperStorage(hypervisor._open, tmp_path)
    hypervisor._open = storage
    return storage


def test_its_devices_are_not_looked_for_on_this_node(hypervisor: Hypervisor) -> None:
    (disk,) = hypervisor.domain(UUID).disks
    assert disk.skipped == "cannot find out which image is mapped as /dev/rbd0"


def test_its_nvram_is_read_through_libvirt_whenever_it_was_made(
    hypervisor: Hypervisor, storage: PaperStorage, nvram: Path
) -> None:
    storage.files["web.fd"] = bytes(range(100))
    definition: Definition = hypervisor.definition(domain())
    assert (definition.nvram_path, definition.nvram) == (str(nvram), bytes(range(100)))
    assert storage.ended


def test_an_nvram_that_is_not_there_is_missed_where_the_domain_runs(
    hypervisor: Hypervisor, storage: PaperStorage, nvram: Path
) -> None:
    with raises(f"cannot read the domain's NVRAM {nvram}: no such file"):
        hypervisor.definition(domain())
    assert hypervisor.definition(domain(state=State.SHUT_OFF)).nvram == b""


def test_an_nvram_in_no_pool_is_an_error_that_says_how_to_make_one(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    with pytest.raises(HypervisorError) as caught:
        hypervisor.definition(domain())
    assert caught.value.message.startswith(f"cannot read {tmp_path}/web.fd through libvirt at {REMOTE}: ")
    assert f"virsh pool-define-as nvram dir --target {tmp_path}" in caught.value.hint
