"""backup/job/qcow2_chain.py: a layer that only a qcow2 header names fails its domain by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup.job_result import Status
from backup.model import Extent, Image, State

from ..memory_snapshot import MemorySnapshot
from ..paper_node import PaperNode
from ..samples import MIB, domain, rbd_disk

OVERLAY = b"QFI\xfb" + (3).to_bytes(4, "big") + (0x70).to_bytes(8, "big") + bytes(88)
DISKS = (rbd_disk("vda", "vms/raw"), rbd_disk("vdb", "vms/overlay", needs_header=True))


def node_with(
    content: bytes, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[PaperNode, list[str], MemorySnapshot]:
    """Give a node whose domain is shut off, the images that are read, and the one with this content."""
    node = PaperNode(directory, monkeypatch, domain(state=State.SHUT_OFF, disks=DISKS))
    snapshot = MemorySnapshot(MIB if content else 0, {0: content} if content else {})
    opened: list[str] = []

    @contextmanager
    def reader(image: Image, _name: str) -> Iterator[MemorySnapshot]:
        opened.append(str(image))
        yield snapshot

    monkeypatch.setattr(node.cluster, "reader", reader)
    return node, opened, snapshot


def test_an_overlay_of_what_the_definition_does_not_have_fails_its_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, opened, snapshot = node_with(OVERLAY, tmp_path, monkeypatch)
    result = node.back_up()
    assert (result.status, result.transient) == (Status.FAILED, False)
    assert result.reason == (
        "disk vdb (vms/overlay) cannot be backed up: its qcow2 header names a backing file"
    )
    assert '<backup exclude="vdb"/>' in result.hint
    assert (opened, snapshot.reads, node.output.points) == (["vms/overlay"], [Extent(0, 104)], [])
    assert node.ours("vms/overlay") == set()


@pytest.mark.parametrize("content", [b"", b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(96), bytes(512)])
def test_an_image_that_needs_nothing_else_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    node, opened, _ = node_with(content, tmp_path, monkeypatch)
    assert node.back_up().status is Status.SAVED
    assert opened == ["vms/overlay"]
