"""backup/status/domain_status.py: which domains there are, and what is known of each."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from backup.errors import ConfigError
from backup.report.domain_record import DomainRecord
from backup.status.domain_status import DomainStatus, all_domains, named

from ..raising import raises
from ..samples import OTHER_UUID, TAKEN, UUID, domain, held_point

OLD = replace(held_point("20240201T000000Z-aaaa", manifest_id="a"), taken=TAKEN - timedelta(days=2))
NEWEST = held_point(manifest_id="b")
FAILED = replace(held_point("20240204T000000Z-cccc"), taken=TAKEN + timedelta(days=1))


def test_the_newest_complete_restore_point_counts_whichever_node_made_it() -> None:
    record = DomainRecord(verified="2024-02-03T05:00:00+00:00")
    (found,) = all_domains([domain("renamed")], [OLD, NEWEST, FAILED], {UUID: record})
    assert found == DomainStatus("renamed", UUID, True, NEWEST, record)


def test_domains_of_other_nodes_and_domains_that_were_never_saved_are_there_too() -> None:
    never = domain("db", OTHER_UUID)
    db, web = all_domains([never], [OLD, NEWEST], {})
    assert (db.name, db.selected, db.newest) == ("db", True, None)
    assert (web.name, web.selected, web.newest) == ("web", False, NEWEST)


def test_a_domain_is_late_without_a_restore_point_that_is_new_enough() -> None:
    (saved,) = all_domains([], [NEWEST], {})
    limit = timedelta(hours=26)
    assert not saved.is_late(TAKEN + limit, limit)
    assert saved.is_late(TAKEN + limit + timedelta(seconds=1), limit)
    assert not saved.is_late(TAKEN - timedelta(minutes=3), limit), "another node's clock is ahead"
    assert saved.age(TAKEN - timedelta(minutes=3)) == timedelta()
    assert replace(saved, newest=None).is_late(TAKEN, limit)


def test_domains_are_named_by_name_uuid_or_pattern() -> None:
    domains = all_domains([domain("db01", OTHER_UUID)], [NEWEST], {})
    assert [one.name for one in named(domains, ())] == ["db01", "web"]
    assert [one.name for one in named(domains, ["db*"])] == ["db01"]
    assert [one.name for one in named(domains, [UUID])] == ["web"]
    bracket = all_domains([domain("web[1]", OTHER_UUID), domain("web1")], [], {})
    assert [one.name for one in named(bracket, ["web[1]"])] == ["web[1]"], "a name, and no pattern"
    with raises("this node backs up no domain 'wbe', and there is no restore point of one", ConfigError):
        named(domains, ["web", "wbe"])
