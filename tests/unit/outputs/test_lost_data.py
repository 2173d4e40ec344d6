"""outputs/restic_incremental.py with a real restic, and a repository that lost data and was repaired."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from backup.errors import BackupError, PreviousBackupDamaged
from backup.protocols import Job, SnapshotSource
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.stored import Base, PointId, SavedImage, StoredPoint
from backup.transfer.compare import pieces_from_output
from outputs.restic_incremental import ResticIncremental
from outputs.restic_repository.messages import ResticError
from outputs.segments import layout as cut

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..repository import Repository
from ..samples import MIB, RUN, TAKEN, UUID, domain, rbd_disk, restore_point

SEGMENT = 4 * MIB
NEXT = "20240204T040506Z-abcd"
RANDOM = random.Random(16)
DATA = {0: RANDOM.randbytes(MIB), SEGMENT + 7: RANDOM.randbytes(MIB)}

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "SMALLEST", SEGMENT)


class Node:
    """An output with one image in a real repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        program = repository.program()
        self.output = ResticIncremental(program, mountpoint=f"{repository.runtime_dir}/segments")

    def save(
        self, run: str, base: Base | None = None, days: int = 0, attempt: int = 1, job: Job | None = None
    ) -> Sequence[SavedImage]:
        source = MemorySource(MemorySnapshot(2 * SEGMENT, DATA, base="kept"), rbd_disk("vda"), base)
        of = restore_point(domain(disks=[source.disk]), run, TAKEN + timedelta(days=days))
        return self.output.save(replace(of, attempt=attempt), [source], job or JobOnPaper())

    def base(self) -> Base:
        """Give what the last run has saved."""
        points = [point for point in self.output.restore_points() if point.manifest_id]
        saved = with_current_ids(manifest.unpack(self.output.manifest(points[-1])), points[-1])
        (image,) = saved.images
        return Base("kept", image, saved.checksums["vda"], saved.times["vda"])

    def known_base(self, known: Sequence[StoredPoint]) -> Base:
        """Give what the output finds of the first run among what a run has listed."""
        saved = self.output.base(UUID, {RUN}, known, lambda: None)
        assert saved
        return Base("kept", saved.images[0], saved.checksums["vda"], saved.times["vda"])

    def content(self, image: SavedImage) -> bytes:
        with self.output.image(image, lambda: None) as source:
            return b"".join(map(bytes, pieces_from_output(source, image.size)))

    def lose_data(self) -> None:
        """Lose the packs with data of the images, and repair the repository as restic's manual says."""
        packs = (self.repository.path / "data").rglob("?" * 64)
        lost = [pack for pack in packs if pack.stat().st_size > MIB // 4]
        assert lost
        for pack in lost:
            pack.unlink()
        self.by_hand("rebuild-index")

    def by_hand(self, *arguments: str) -> None:
        command = ["restic", "--no-cache", "--repo", str(self.repository.path), *arguments]
        password = f"--password-file={self.repository.password_file}"
        subprocess.run([*command, password], check=True, capture_output=True, timeout=60)


@pytest.fixture
def node(repository: Repository) -> Node:
    node = Node(repository)
    node.save(RUN)
    return node


def test_an_undamaged_previous_backup_is_built_on(node: Node) -> None:
    (image,) = node.save(NEXT, node.base(), days=1)
    assert image.read_bytes == 0
    assert node.content(image) == MemorySnapshot(2 * SEGMENT, DATA).content


def test_a_previous_backup_that_lost_data_is_built_on_once_and_not_by_the_retry(node: Node) -> None:
    base = node.base()
    node.lose_data()
    message = (
        "^the repository has lost data of the previous backup, a full read is needed: restic backup failed"
    )
    with pytest.raises(PreviousBackupDamaged, match=message) as caught:
        node.save(NEXT, base, days=1)
    assert caught.value.transient
    assert "restic check" in caught.value.hint
    node.output.withdraw([PointId(NEXT, UUID)])
    (image,) = node.save(NEXT, days=1, attempt=2)
    assert node.content(image) == MemorySnapshot(2 * SEGMENT, DATA).content
    (after,) = node.save("20240205T040506Z-abcd", node.base(), days=2)
    assert (after.read_bytes, node.content(after)) == (0, node.content(image))


def test_a_previous_backup_whose_id_has_changed_since_the_listing_is_found_by_the_retry(node: Node) -> None:
    known = node.output.restore_points()
    node.by_hand("tag", "--add", "of-an-admin")
    with pytest.raises(ResticError) as caught:
        node.save(NEXT, node.known_base(known), days=1)
    assert caught.value.transient
    (image,) = node.save(NEXT, node.known_base(known), days=1, attempt=2)
    assert image.read_bytes == 0


class Comparing(JobOnPaper):
    """Compares each image, and counts the restore points that exist by then."""

    def __init__(self, output: ResticIncremental, differs: bool) -> None:
        super().__init__(verifies=True)
        self.output, self.differs = output, differs
        self.counted: list[str] = []

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        points = self.output.restore_points()
        self.counted += [point.id.run for point in points if point.manifest_id]
        if self.differs:
            raise BackupError("the image differs")


@pytest.mark.parametrize("differs", [False, True])
def test_with_verify_a_restore_point_counts_once_its_images_were_compared(node: Node, differs: bool) -> None:
    job = Comparing(node.output, differs)
    if differs:
        with pytest.raises(BackupError, match="the image differs"):
            node.save(NEXT, node.base(), days=1, job=job)
    else:
        node.save(NEXT, node.base(), days=1, job=job)
    assert job.counted == [RUN]
    known = node.output.restore_points()
    assert [point.id.run for point in known if point.manifest_id] == [RUN] + [NEXT] * (not differs)
    node.output.discard([point.id for point in known], True)
    after = node.base()
    (image,) = node.save("20240205T040506Z-abcd", after, days=2)
    assert image.read_bytes == 0
    assert node.content(image) == MemorySnapshot(2 * SEGMENT, DATA).content
