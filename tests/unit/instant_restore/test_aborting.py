"""backup/instant_restore/aborting.py: an end needs no restore point."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from backup.errors import BackupError
from backup.instant import record as records
from backup.instant.record import Record, RecordedDisk, Stage
from backup.instant_restore import aborting, ending
from backup.instant_restore.aborting import InstantAbort
from backup.instant_restore.given import Given
from backup.instant_restore.journal import Journal
from backup.model import Definition, Level
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.stored import Packed, PointId, SavedImage, StoredPoint
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster
from ..recorder import Recorder
from ..samples import LAYOUT, MIB, UUID, domain, restore_point, settings
from ..stored_points import HeldPoints

DISKS = (RecordedDisk("vda", "vms/web-root", "vda"),)
POINT = PointId("20230101T000000Z-aaaa", UUID)  # it is no longer in the repository
RECORD = Record("web", "web", UUID, POINT, "2024-02-03 04:05:06", "0123", "node1", DISKS, Stage.RUNNING)
COPY = replace(
    RECORD, name="copy", uuid="0" * 32, disks=(RecordedDisk("vda", "ssd/fast/web-root-copy", "vda"),)
)


class Repository(HeldPoints):
    """Has the newest restore point of the domain, unless it is unreachable."""

    unreachable = False

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> list[StoredPoint]:
        if self.unreachable:
            raise BackupError("the repository does not answer")
        return list(super().restore_points(check_stop))

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        image = SavedImage("vda", "vms/web-root", MIB, 4096, 0, 0.0, "web", LAYOUT)
        return manifest.pack(
            replace(restore_point(domain()), definition=Definition("<domain/>")), [image], {}
        )


class Aborts:
    """Aborts on paper, and has what was aborted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, there: Mapping[str, Record]) -> None:
        self.aborted: list[tuple[Record, str, str, bool]] = []
        self.cluster, self.output, self.recorder = PaperCluster(), Repository({UUID: "web"}), Recorder()
        self.cluster.pools = {"vms", "ssd", "closed"}
        self.there = dict(there)
        self.cluster.snapshots = {f"{name}.virt-rbd-backup.overlay": set() for name in there}
        monkeypatch.setattr(records, "read", lambda _, image: self.there.get(str(image)))
        monkeypatch.setattr(aborting, "restore_cluster", lambda *_: nullcontext(self.cluster))
        monkeypatch.setattr(aborting, "locked", lambda _: nullcontext())
        monkeypatch.setattr(Restorer, "domain", lambda *_: Defined("web", UUID))
        monkeypatch.setattr(ending, "abort", self._abort)
        monkeypatch.setattr(ending, "image_id", lambda _, image: self.overlay_id)

    overlay_id = "12ab"

    def _abort(self, given: Given, journal: Journal, discard: bool) -> None:
        self.aborted.append((journal.record, given.domain.name, given.domain.uuid, discard))

    def __call__(self, **options: Any) -> None:
        order = RestoreOrder(**{"domain": "web", "instant": True, "abort": True, **options}).complete()
        InstantAbort(order, settings(), self.output, self.recorder, StopRequest()).abort()


@dataclass(frozen=True)
class Defined:
    """Satisfies what is used of RestoredDomain."""

    name: str
    uuid: str

    @property
    def hypervisor(self) -> Any:
        return SimpleNamespace(local=True)


@pytest.fixture
def aborts(monkeypatch: pytest.MonkeyPatch) -> Aborts:
    return Aborts(monkeypatch, {"vms/web-root": RECORD, "ssd/fast/web-root-copy": COPY})


@pytest.mark.parametrize("unreachable", [False, True])
def test_it_ends_although_its_restore_point_is_gone_or_the_repository_unreachable(
    aborts: Aborts, unreachable: bool
) -> None:
    aborts.output.unreachable = unreachable
    aborts(discard=True)
    assert aborts.aborted == [(RECORD, "web", UUID, True)]
    expected = "the repository does not answer; the instant restore is looked for in all pools"
    assert aborts.recorder.told(Level.WARNING) == [expected] * unreachable


def test_a_copy_is_ended_by_its_name(aborts: Aborts) -> None:
    aborts.output.unreachable = True
    aborts(name="copy", to_pool="ssd/fast", suffix="-copy")
    assert aborts.aborted == [(COPY, "copy", "0" * 32, False)]


@pytest.mark.parametrize(
    "options", [{"name": "other"}, {"to_pool": "ssd"}, {"suffix": "-other"}, {"domain": "other"}]
)
def test_another_one_than_ordered_is_not_ended(aborts: Aborts, options: dict[str, str]) -> None:
    aborts.output.unreachable = True
    name = options.get("name") or options.get("domain", "web")
    with pytest.raises(
        BackupError, match=f"no instant restore of {name} is under way; there is no pool closed"
    ):
        aborts(**options)
    assert aborts.aborted == []


def test_one_of_several_has_to_be_selected(aborts: Aborts) -> None:
    aborts.output.unreachable = True
    aborts.there["ssd/fast/web-root-copy"] = replace(COPY, name="web")
    with pytest.raises(BackupError, match="several are under way: instant restore of web from"):
        aborts()
    aborts(to_pool="vms")
    assert [record for record, *_ in aborts.aborted] == [RECORD]


def test_a_complete_one_whose_record_was_left_is_not_aborted(
    aborts: Aborts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would shut off a guest in production, and --discard remove it."""
    aborts.overlay_id = ""
    complete = replace(DISKS[0], filled="34cd", moved=True)
    aborts.there["vms/web-root"] = replace(RECORD, started=True, disks=(complete,))
    monkeypatch.setattr(records, "remove", lambda _, record: aborts.there.pop(str(record.first)))
    with pytest.raises(BackupError, match="was complete already"):
        aborts(discard=True)
    assert (aborts.aborted, [*aborts.there]) == ([], ["ssd/fast/web-root-copy"])


def test_one_whose_overlay_is_gone_is_found_by_the_images_of_the_restore_point(aborts: Aborts) -> None:
    aborts.cluster.snapshots = {}
    aborts()
    assert [record for record, *_ in aborts.aborted] == [RECORD]
