"""backup/verify/instant_drill.py: what an instant drill proves, and what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from backup.errors import BackupError, DrillFailed, NotDrillable, NotPossibleHere
from backup.hypervisor.guest_mounts import Mount
from backup.model import Level
from backup.report.domain_record import DomainRecords, read_records
from backup.restore_point import manifest
from backup.stored import StoredPoint
from backup.system.stop_request import StopRequest
from backup.verify.boot import Booted
from backup.verify.drill import Drill
from backup.verify.instant_drill import InstantDrill, chosen_drill

from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB, OTHER_UUID, UUID, settings
from ..stored_points import HeldPoints

BOTH = {UUID: "web", OTHER_UUID: "db"}
STOP = StopRequest()


@dataclass(frozen=True)
class OnPaper(InstantDrill):
    """Fails with this error, or passes without one."""

    error: BackupError | None = None

    def _prove(self, point: StoredPoint) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    return str(tmp_path / "state")


def drill(state_dir: str, error: BackupError | None = None, name: str = "") -> str:
    return OnPaper(settings(state_dir=state_dir), HeldPoints(BOTH), Recorder(), STOP, error=error).drill(name)


def test_without_a_name_the_domain_whose_drill_of_any_kind_is_longest_ago_is_next(state_dir: str) -> None:
    DomainRecords(state_dir, Recorder()).update(
        UUID, "web", tried="2024-02-03T04:05:06+00:00", drill_kind="restored"
    )
    assert drill(state_dir) == "db"
    assert drill(state_dir) == "web"


def test_it_is_recorded_as_what_it_is(state_dir: str) -> None:
    assert drill(state_dir, name="web") == "web"
    record = read_records(state_dir)[UUID]
    assert (record.drilled > "2020", record.drill_kind, record.verified) == (True, "instant", "")


@pytest.mark.parametrize("kind", ["", "restored"])
def test_a_comparison_that_has_failed_stays_failed(state_dir: str, kind: str) -> None:
    records = DomainRecords(state_dir, Recorder())
    records.update(UUID, "web", failure="vda differs", failed_drill=kind)
    drill(state_dir, name="web")
    record = read_records(state_dir)[UUID]
    assert (record.failure, record.drill_kind) == ("vda differs", "instant")
    records.record_verified(UUID, "web")
    assert read_records(state_dir)[UUID].failure == ""


def test_a_boot_that_has_failed_is_disproved_by_one_that_passes(state_dir: str) -> None:
    with raises("it is paused", DrillFailed):
        drill(state_dir, BackupError("it is paused"), "web")
    assert read_records(state_dir)[UUID].failed_drill == "instant"
    drill(state_dir, name="web")
    assert read_records(state_dir)[UUID].failure == ""
    with raises("it is paused", DrillFailed):
        drill(state_dir, BackupError("it is paused"), "web")
    DomainRecords(state_dir, Recorder()).update(UUID, "web", failure="vda differs")
    drill(state_dir, name="web")
    assert read_records(state_dir)[UUID].failure == "vda differs", "it is of a verification by now"


@pytest.mark.parametrize("kind", ["", "restored"])
def test_a_comparison_that_has_failed_stays_failed_also_after_a_failed_boot(
    state_dir: str, kind: str
) -> None:
    DomainRecords(state_dir, Recorder()).update(UUID, "web", failure="vda differs", failed_drill=kind)
    with raises("it is paused", DrillFailed):
        drill(state_dir, BackupError("it is paused"), "web")
    drill(state_dir, name="web")
    record = read_records(state_dir)[UUID]
    assert (record.failure, record.failed_drill) == ("vda differs", kind)


@pytest.mark.parametrize("kind", [NotDrillable, NotPossibleHere])
def test_what_cannot_be_drilled_here_is_no_failure_of_the_restore_point(
    state_dir: str, kind: type[BackupError]
) -> None:
    with raises("vda is encrypted", kind):
        drill(state_dir, kind("vda is encrypted"), "web")
    record = read_records(state_dir)[UUID]
    assert (record.failure, record.drilled, record.tried > "2020") == ("", "", True)


@pytest.mark.parametrize(
    ("pool", "boot", "instant", "kind"),
    [
        ("scratch", False, False, Drill),
        ("scratch", True, False, Drill),
        ("scratch", False, True, InstantDrill),
        ("", False, False, Drill),
        ("", True, False, InstantDrill),
        ("", False, True, InstantDrill),
    ],
)
def test_without_a_pool_a_boot_is_one_out_of_the_repository(
    pool: str, boot: bool, instant: bool, kind: type[Drill], recorder: Recorder
) -> None:
    changed = settings(drill_pool=pool)
    chosen = chosen_drill(changed, HeldPoints(BOTH), recorder, STOP, boot, instant)
    assert type(chosen) is kind
    assert bool(recorder.messages) == (boot and not pool)


MOUNTS: list[Mount] = [("/", "vda1", "ext4", ["vda"]), ("/a\nb", "dm-0", "xfs", [])]


def reported(mounts: list[Mount] | None, targets: tuple[str, ...] = ("vda", "vdb")) -> Recorder:
    output, recorder = HeldPoints(BOTH), Recorder()
    saved = manifest.unpack(output.manifest(output.restore_points()[0]))
    images = tuple(replace(saved.images[0], target=target, data_bytes=MIB) for target in targets)
    drilled = InstantDrill(settings(), output, recorder, STOP)
    drilled._report(replace(saved, images=images), Booted(mounts), 7.4)
    return recorder


def test_it_is_reported_which_file_systems_are_mounted_and_that_no_data_were_compared() -> None:
    assert reported(MOUNTS).told(Level.INFO) == [
        "booted out of the repository in 7 s; its data were not compared",
        r"file systems mounted: / (ext4 on vda), /a\nb (xfs)",
        "vdb: the guest has mounted no file system of it",
    ]


def test_of_an_agent_that_names_no_disks_none_is_missed() -> None:
    assert len(reported([("/", "dm-0", "xfs", [])]).told(Level.INFO)) == 2
    assert len(reported(MOUNTS, ("vda", "vda.backing1")).told(Level.INFO)) == 2


def test_a_long_list_is_cut_and_an_agent_without_one_is_a_warning() -> None:
    (_, text, _) = reported([MOUNTS[0]] * 12).told(Level.INFO)
    assert text.endswith(" and 2 more")
    assert reported(None).told(Level.WARNING) == ["its agent answers, but does not list the file systems"]
