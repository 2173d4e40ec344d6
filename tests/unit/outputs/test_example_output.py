"""tests/example_output.py: what tests/README.md presents as an output works as one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.protocols import Output
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.stored import PointId, SavedImage
from backup.system.stop_request import StopRequest
from backup.verify.verification import Verification
from tests.example_output import Directory

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..recorder import Recorder
from ..samples import MIB, RUN, UUID, domain, rbd_disk, restore_point, settings

README = Path(__file__).parents[2] / "README.md"
SNAPSHOT = MemorySnapshot(9 * MIB + 513, {0: b"begin", 5 * MIB - 2: b"across", 9 * MIB + 512: b"x"})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    (tmp_path / "store").mkdir()
    return Directory(str(tmp_path / "store"))


def save(output: Output, *snapshots: MemorySnapshot) -> tuple[SavedImage, ...]:
    targets = ("vda", "vdb")
    sources = [MemorySource(one, rbd_disk(target)) for target, one in zip(targets, snapshots)]
    point = restore_point(domain(disks=[source.disk for source in sources]))
    return output.save(point, sources, JobOnPaper())


def test_what_is_saved_is_listed_and_restored_byte_for_byte(output: Output, tmp_path: Path) -> None:
    save(output, SNAPSHOT)
    (point,) = output.ready()
    assert (point.id, point.domain, point.images[0].size) == (PointId(RUN, UUID), "web", SNAPSHOT.size)
    assert output.last_saved(UUID) == point.taken
    assert manifest.unpack(output.manifest(point)).name == "web"
    order = RestoreOrder("web", to_file=str(tmp_path / "back.img"))
    Restorer(order, settings(), output, Recorder(), StopRequest()).restore()
    assert (tmp_path / "back.img").read_bytes() == SNAPSHOT.content


def test_what_is_saved_can_be_read_at_any_offset(output: Output, tmp_path: Path) -> None:
    save(output, SNAPSHOT)
    (point,) = output.restore_points()
    with output.opened(point, lambda: None) as opened:
        opened.check()
        (saved,) = manifest.unpack(opened.manifest()).images
        assert opened.image(saved).read(5 * MIB - 4, 10) == SNAPSHOT.content[5 * MIB - 4 :][:10]
    assert output.holds(str(tmp_path / "store" / "any"))
    assert not output.holds(str(tmp_path))


def test_what_is_saved_can_be_verified(output: Output, tmp_path: Path) -> None:
    save(output, SNAPSHOT)
    of_test = settings(state_dir=str(tmp_path / "state"), workers=1)
    verified = Verification(of_test, output, Recorder(), StopRequest(), 1.0).verify(["web"], "latest")
    assert not verified.failed


def test_a_failed_backup_is_no_restore_point_and_is_removed(output: Output) -> None:
    with pytest.raises(BackupError):
        save(output, SNAPSHOT, MemorySnapshot(MIB, {0: b"x"}, fails_at=0))
    (point,) = output.restore_points()
    assert not point.manifest_id
    assert output.last_saved(UUID) is None
    output.discard([point.id], wait_if_busy=False)
    assert output.restore_points() == []


def test_a_complete_restore_point_is_removed_only_when_it_is_withdrawn(output: Output) -> None:
    save(output, SNAPSHOT)
    output.discard([PointId(RUN, UUID)], wait_if_busy=False)
    assert len(output.restore_points()) == 1
    output.withdraw([PointId(RUN, UUID)])
    assert output.restore_points() == []


def test_a_directory_that_is_gone_is_a_problem(output: Output) -> None:
    Path(output.directory).rmdir()  # type: ignore[attr-defined]
    with pytest.raises(BackupError, match="cannot write to DIRECTORY"):
        output.ready()


def test_the_readme_explains_every_method_of_an_output() -> None:
    methods = {name for name in vars(Output) if not name.startswith("_")}
    assert methods - set(re.findall(r"`(\w+)`", README.read_text())) == set()
