"""outputs/restic_incremental.py with a real restic: an image of which whole subdirectories are holes."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from backup.model import Extent
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.stored import Base, StoredPoint
from backup.transfer.compare import pieces_from_output
from outputs.restic_incremental import ResticIncremental
from outputs.segments import changed
from outputs.segments import layout as cut
from outputs.segments.layout import PER_DIRECTORY

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..repository import Repository
from ..samples import TAKEN, domain, rbd_disk, restore_point

SEGMENT = 4096
SUBDIRECTORY = PER_DIRECTORY * SEGMENT
SIZE = 4 * SUBDIRECTORY + 100
DATA = {SUBDIRECTORY + 10_000: b"in the second one" * 500, SIZE - 5: b"last!"}
LATER = {**DATA, 2 * SUBDIRECTORY + 5000: b"in a hole" * 100}
RUNS = ("20240203T040506Z-aaaa", "20240204T040506Z-bbbb")
# as res/docs/restore.md has it
BY_HAND = 'for part in vda/[0-9]*; do cat "$part"/*; done'


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", SEGMENT)
    monkeypatch.setattr(changed, "spot_check", lambda *_: None)  # of pieces that are larger than these


@pytest.fixture
def output(repository: Repository, tmp_path: Path) -> ResticIncremental:
    return ResticIncremental(repository.program(), mountpoint=str(tmp_path / "run/segments"))


def save(output: ResticIncremental, snapshot: MemorySnapshot, run: str, base: Base | None = None) -> Base:
    point = restore_point(domain(), run, TAKEN + RUNS.index(run) * timedelta(days=1))
    output.save(point, [MemorySource(snapshot, rbd_disk(), base)], JobOnPaper())
    found = newest(output)
    saved = with_current_ids(manifest.unpack(output.manifest(found)), found)
    return Base("base", saved.images[0], saved.checksums["vda"], saved.times["vda"])


def newest(output: ResticIncremental) -> StoredPoint:
    return output.restore_points()[-1]


def assert_reads_as(output: ResticIncremental, base: Base, content: bytes) -> None:
    """The image reads as this from its archive, and at any offset of a mount."""
    with output.image(base.saved, lambda: None) as source:
        assert b"".join(map(bytes, pieces_from_output(source, SIZE))) == content
    with output.opened(newest(output), lambda: None) as opened:
        image = opened.image(base.saved)
        for offset in (0, SEGMENT - 1, SUBDIRECTORY - 3, 2 * SUBDIRECTORY - 3, 2 * SUBDIRECTORY + 4990):
            assert image.read(offset, 9000) == content[offset : offset + 9000]
        assert image.read(0, SIZE) == content


def links(repository: Repository) -> list[str]:
    """Return the links in place of subdirectories."""
    nodes = map(json.loads, repository.restic("ls", "--json", "latest").splitlines())
    found = [one["path"] for one in nodes if one.get("type") == "symlink"]
    return [path for path in found if path.count("/") == 2]


def test_it_is_saved_and_read_back_byte_for_byte(
    output: ResticIncremental, repository: Repository, tmp_path: Path
) -> None:
    first = save(output, MemorySnapshot(SIZE, DATA), RUNS[0])
    assert links(repository) == ["/vda/0000", "/vda/0002", "/vda/0003"]
    assert_reads_as(output, first, MemorySnapshot(SIZE, DATA).content)

    changes = [Extent(2 * SUBDIRECTORY + 5000, 900)]
    later = MemorySnapshot(SIZE, LATER, base="base", changed=changes)
    second = save(output, later, RUNS[1], first)
    assert links(repository) == ["/vda/0000", "/vda/0003"]
    assert second.saved.read_bytes == 900
    assert_reads_as(output, second, later.content)

    repository.restic("restore", "latest", f"--target={tmp_path}/back")
    by_hand = subprocess.run(["bash", "-c", BY_HAND], cwd=tmp_path / "back", capture_output=True, check=True)
    assert by_hand.stdout == later.content
    assert BY_HAND.replace("vda/", "/srv/back/vda/") in Path("res/docs/restore.md").read_text()
