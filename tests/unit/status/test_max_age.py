"""backup/status/max_age.py: a check for Nagios or Icinga."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.job.failed_points import FailedPoints
from backup.status.max_age import Verdict, judge
from backup.status.status import StatusSearch
from backup.stored import PointId, StoredPoint

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..jobs_on_paper import NoOutput
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, TAKEN, UUID, held_point, settings

DAY = timedelta(hours=26)
GONE = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e09"


@dataclass
class Points(NoOutput):
    """Holds these restore points, or an error."""

    points: Sequence[StoredPoint] = ()
    error: BackupError | None = None

    def configuration_errors(self) -> Sequence[BackupError]:
        return ()

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        if self.error:
            raise self.error
        return self.points


@pytest.fixture
def uri(tmp_path: Path) -> str:
    domains = [domain_element("web", UUID, rbd("vms/a")), domain_element("db", OTHER_UUID, rbd("vms/b"))]
    return node_uri(tmp_path / "node.xml", *domains)


def point(uuid: str, name: str, hours: float) -> StoredPoint:
    """A restore point of this age."""
    return replace(held_point(uuid=uuid, manifest_id="m"), domain=name, taken=TAKEN - timedelta(hours=hours))


def judged(
    uri: object, *points: StoredPoint, names: Sequence[str] = (), now: datetime = TAKEN, **constants: object
) -> Verdict:
    search = StatusSearch(
        settings(libvirt_uri=uri, **constants), Points(points), Recorder(), lambda: None, now
    )
    return judge(search, names, DAY)


def test_all_domains_have_a_restore_point_that_is_new_enough(uri: str) -> None:
    verdict = judged(uri, point(UUID, "web", 25), point(OTHER_UUID, "db", 1))
    assert (verdict.exit_code, verdict.text) == (
        0,
        "OK: 2 of 2 domains have a restore point of the last 26 h",
    )


def test_domains_that_are_late_are_named_with_their_ages(uri: str) -> None:
    verdict = judged(uri, point(UUID, "web", 27))
    assert (verdict.exit_code, verdict.text) == (
        2,
        "CRITICAL: 2 of 2 domains have no restore point of the last 26 h: db (none), web (27 h)",
    )


def test_a_domain_of_which_only_old_restore_points_are_left_is_judged_where_it_is_named(uri: str) -> None:
    points = [point(GONE, "gone", 900), point(UUID, "web", 1), point(OTHER_UUID, "db", 1)]
    assert judged(uri, *points).exit_code == 0
    assert judged(uri, *points, names=["gone"]).exit_code == 2
    assert judged(uri, *points, names=["web"]).exit_code == 0


def test_domains_that_this_node_does_not_back_up_are_not_judged(uri: str) -> None:
    assert judged(uri, point(UUID, "web", 1), exclude_domains=["db"]).exit_code == 0
    nothing = judged(uri, exclude_domains=["*"])
    assert (nothing.exit_code, nothing.text) == (0, "OK: this node backs up no domain")


def test_an_instant_restore_that_never_ends_does_not_hide_that_there_are_no_backups(tmp_path: Path) -> None:
    """Backups skip the domain until it is moved to its restored images."""
    on_overlay = domain_element("web", UUID, rbd("vms/a.virt-rbd-backup.overlay"))
    uri = node_uri(tmp_path / "node.xml", on_overlay)
    assert (
        judged(uri, point(UUID, "web", 25)).text == "OK: 1 of 1 domains have a restore point of the last 26 h"
    )
    assert judged(uri, point(UUID, "web", 900)).exit_code == 2
    assert judged(uri, point(UUID, "web", 900), exclude_domains=["web"]).exit_code == 0


def test_a_restore_point_that_failed_and_is_still_there_does_not_count(uri: str, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    old = replace(point(UUID, "web", 27), id=PointId("20240101T000000Z-aaaa", UUID))
    points = [old, point(UUID, "web", 1), point(OTHER_UUID, "db", 1)]
    assert judged(uri, *points, state_dir=state).exit_code == 0
    FailedPoints(state).add(points[1].id)
    assert judged(uri, *points, state_dir=state).text.endswith("26 h: web (27 h)")


def test_a_restore_point_of_the_future_is_not_new_enough(uri: str) -> None:
    """With a clock that was wrong once, a domain would be judged as saved for years."""
    late = replace(point(UUID, "web", 0), taken=datetime.now(timezone.utc) + timedelta(days=900))
    old, db = point(UUID, "web", 27), point(OTHER_UUID, "db", 1)
    assert judged(uri, late, db).text.endswith("26 h: web (from the future: a clock was wrong)")
    assert judged(uri, old, db, late).text.endswith("26 h: web (27 h)")
    assert judged(uri, point(UUID, "web", 2), db, late).exit_code == 0


def test_what_cannot_be_found_out_is_unknown(uri: str) -> None:
    good = [point(UUID, "web", 1), point(OTHER_UUID, "db", 1)]
    elsewhere = "test:///nowhere.xml"
    both = judged([uri, elsewhere], *good)
    assert both.exit_code == 3
    assert "not every libvirt of this node answered" in both.text
    assert judged([uri, elsewhere], good[0]).exit_code == 2, "one is late whatever the other libvirt has"
    assert judged(elsewhere, *good).exit_code == 3
    search = StatusSearch(
        settings(libvirt_uri=uri),
        Points(error=BackupError("no repository", "see x")),
        Recorder(),
        lambda: None,
    )
    assert judge(search, (), DAY) == Verdict(3, "UNKNOWN: no repository (hint: see x)")


def test_a_libvirt_that_fails_while_it_lists_costs_only_what_it_knows(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise HypervisorError("cannot list the domains: connection lost")

    monkeypatch.setattr(Hypervisor, "domains", lost)
    verdict = judged(uri, point(UUID, "web", 1))
    assert verdict.text.startswith("UNKNOWN: not every libvirt of this node answered")
    assert verdict.status
    assert [one.name for one in verdict.status.domains] == []
    assert judged(uri, point(UUID, "web", 1), names=["web"]).exit_code == 3


def test_an_interrupted_check_has_no_verdict(uri: str) -> None:
    search = StatusSearch(
        settings(libvirt_uri=uri),
        Points(error=Interrupted("interrupted by SIGINT", 2)),
        Recorder(),
        lambda: None,
    )
    with raises("interrupted by SIGINT", Interrupted):
        judge(search, (), DAY)
