"""outputs/restic.py: when a domain was last saved, by any node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from backup.model import Domain
from outputs.restic import Restic

from ..jobs_on_paper import JobOnPaper
from ..raising import raises
from ..repository import Repository
from ..samples import OTHER_UUID, TAKEN, UUID, domain, restore_point

pytestmark = pytest.mark.usefixtures("nothing_left")

HOURS = [TAKEN + timedelta(hours=number) for number in range(4)]


def save(repository: Repository, of: Domain, taken: datetime) -> None:
    Restic(repository.program()).save(restore_point(of, taken=taken), (), JobOnPaper())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Listed snapshots, the newest not last: web twice, renamed since; an incomplete restore point."""
    repository = Repository(tmp_path_factory.mktemp("times"))
    save(repository, domain("web-renamed", disks=()), HOURS[2])
    save(repository, domain("web", disks=()), HOURS[0])
    tags = ("--tag=virt-rbd-backup", f"--tag=uuid={UUID}", f"--time={HOURS[3]:%Y-%m-%d %H:%M:%S}")
    with repository.program().backup(tags, lambda: None) as backup:
        backup.sink.write(b"an image that no manifest counts")
    return repository


def test_the_newest_complete_restore_point_of_the_domain_counts_whatever_its_name(
    repository: Repository,
) -> None:
    output = Restic(repository.program())
    assert output.last_saved(UUID) == HOURS[2].replace(microsecond=0)
    assert output.last_saved(OTHER_UUID) is None
    assert repository.locks() == []


def last_saved(directory: Path, *times: str) -> datetime | None:
    """Ask a restic that lists snapshots of these times."""
    fake = directory / "fake-restic"
    listed = json.dumps([{"time": time} for time in times] or None)
    fake.write_text(f"#!/bin/sh\necho '{listed}'\n")
    fake.chmod(0o700)
    return Restic(Repository(directory).program(str(fake))).last_saved(UUID)


@pytest.mark.parametrize(
    ("times", "newest"),
    [
        (["2024-02-03T04:05:06Z"], (4, 5, 6)),
        (["2024-02-03T04:05:06.7Z"], (4, 5, 6)),
        (["2024-02-03T04:05:06.789012345+02:00"], (2, 5, 6)),
        (["2024-02-03T04:05:06.789012345-02:30"], (6, 35, 6)),
        (["2024-02-03T04:00:00+02:00", "2024-02-03T03:00:00Z"], (3, 0, 0)),
        (["2024-02-03T03:00:00Z", "2024-02-03T00:30:00.000000001-03:00"], (3, 30, 0)),
    ],
)
def test_restic_s_times_are_read_with_any_zone_and_fraction(
    tmp_path: Path, times: Sequence[str], newest: tuple[int, int, int]
) -> None:
    assert last_saved(tmp_path, *times) == datetime(2024, 2, 3, *newest, tzinfo=timezone.utc)


def test_a_restore_point_that_a_wrong_clock_made_does_not_count(tmp_path: Path) -> None:
    future = f"{datetime.now(timezone.utc) + timedelta(days=365):%Y-%m-%dT%H:%M:%SZ}"
    assert last_saved(tmp_path, "2024-02-03T04:05:06Z", future) == TAKEN.replace(microsecond=0)
    assert last_saved(tmp_path, future) is None


def test_a_repository_without_snapshots_may_print_null(tmp_path: Path) -> None:
    assert last_saved(tmp_path) is None


def test_a_repository_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    fake = tmp_path / "fake-restic"
    fake.write_text("#!/bin/sh\necho 'Fatal: no route to host' >&2\nexit 1\n")
    fake.chmod(0o700)
    with raises("restic snapshots failed with exit code 1: Fatal: no route to host"):
        Restic(Repository(tmp_path).program(str(fake))).last_saved(UUID)
