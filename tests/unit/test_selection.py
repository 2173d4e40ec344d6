"""backup/selection.py: which domains are backed up, and why others are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from backup.errors import BackupError, ConfigError, Skipped
from backup.model import Domain, Override, State
from backup.selection import Choice, choose, require_complete

from .raising import raises
from .samples import OTHER_URI, OTHER_UUID, URI, UUID, broken_disk, domain, foreign_disk, rbd_disk, settings

WEB = domain("web", UUID, disks=[rbd_disk("vda", "vms/web-root"), rbd_disk("vdb", "ssd/scratch/web-tmp")])
DB = domain("db-1", OTHER_UUID)
FILE = domain("file", "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e03", disks=[foreign_disk()])
ALL = (WEB, DB, FILE)


def skipped(*names: str, domains: tuple[Domain, ...] = ALL, **constants: Any) -> dict[str, str]:
    return {one.domain.name: one.skipped for one in choose(domains, settings(**constants), names)}


def test_without_configuration_every_domain_with_an_rbd_image_is_backed_up() -> None:
    assert skipped() == {"web": "", "db-1": "", "file": "no RBD image to back up"}


@pytest.mark.parametrize("pattern", ["db-*", "db-[0-9]", OTHER_UUID, "*2e02"])
def test_only_domains_that_include_domains_matches_are_backed_up(pattern: str) -> None:
    assert skipped(include_domains=[pattern]) == {
        "web": "not in INCLUDE_DOMAINS",
        "db-1": "",
        "file": "not in INCLUDE_DOMAINS",
    }


def test_exclude_domains_takes_precedence_over_include_domains() -> None:
    assert skipped(include_domains=["web", "db-1"], exclude_domains=["w?b"])["web"] == "in EXCLUDE_DOMAINS"


def test_patterns_are_case_sensitive_like_libvirt_s_names() -> None:
    assert skipped(include_domains=["WEB"])["web"] == "not in INCLUDE_DOMAINS"


@pytest.mark.parametrize("name", ["web", "w*", UUID, UUID.upper()])
def test_names_on_the_command_line_replace_include_domains(name: str) -> None:
    found = skipped(name, include_domains=["db-1"])
    assert (found["web"], found["db-1"]) == ("", "not selected on the command line")


def test_a_name_with_glob_characters_matches_itself() -> None:
    assert skipped("a[b]*", domains=(domain("a[b]*"),)) == {"a[b]*": ""}


def test_every_unknown_name_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        skipped("wbe", "web", "dc-*")
    assert [error.message for error in caught.value.errors] == [
        "there is no domain 'wbe'",
        "there is no domain 'dc-*'",
    ]
    assert caught.value.errors[0].hint == "this node's domains: web, db-1, file"


def test_with_many_domains_the_hint_refers_to_the_list_command() -> None:
    many = tuple(domain(f"d{number}", str(number)) for number in range(11))
    for domains, hint in ((many[:10], "this node's domains: d0, d1, "), (many, "see `main.py list`")):
        with pytest.raises(ConfigError) as caught:
            skipped("wbe", domains=domains)
        assert caught.value.errors[0].hint.startswith(hint)


def test_a_domain_whose_images_are_all_excluded_is_skipped() -> None:
    assert skipped(exclude_images=["*"])["web"] == "no RBD image to back up"


def test_a_domain_without_disks_is_skipped() -> None:
    assert skipped(domains=(domain(disks=()),)) == {"web": "no RBD image to back up"}


def test_a_domain_with_an_image_that_cannot_be_backed_up_is_selected_and_fails() -> None:
    assert skipped(domains=(domain(disks=[broken_disk()]),)) == {"web": ""}


def test_a_domain_that_cannot_be_read_is_selected_and_fails() -> None:
    unreadable = domain(disks=(), problem=BackupError("cannot read the domain's definition"))
    assert skipped(domains=(unreadable,)) == {"web": ""}
    assert skipped(domains=(unreadable,), exclude_domains=["web"]) == {"web": "in EXCLUDE_DOMAINS"}


def test_a_domain_that_migrated_away_is_skipped() -> None:
    assert skipped(domains=(domain(state=State.ELSEWHERE),)) == {"web": "migrated to another node"}


def choice(override: Override, *names: str, **constants: Any) -> Choice:
    (choice,) = choose([domain(override=override)], settings(**constants), names)
    return choice


@pytest.mark.parametrize("constants", [{"include_domains": ["db"]}, {"exclude_domains": ["*"]}])
def test_metadata_that_enables_a_domain_overrides_the_patterns(constants: Any) -> None:
    chosen = choice(Override(enabled=True), **constants)
    assert (chosen.skipped, chosen.selected_by) == ("", "its metadata")


@pytest.mark.parametrize("names", [(), ("web",)])
def test_a_domain_disabled_in_its_metadata_is_skipped_even_if_it_is_named(names: tuple[str, ...]) -> None:
    assert choice(Override(enabled=False), *names).skipped == "disabled in its metadata"


def test_a_domain_without_metadata_is_selected_by_patterns_or_by_name() -> None:
    assert choice(Override(freeze="never")).selected_by == "INCLUDE_DOMAINS"
    assert choice(Override(), "web", include_domains=[]).selected_by == "named"
    assert choice(Override(enabled=True), "web").selected_by == "named"


def test_an_excluded_domain_is_skipped_even_if_it_is_named() -> None:
    assert choice(Override(), "web", exclude_domains=["web"]).skipped == "in EXCLUDE_DOMAINS"
    assert choice(Override(enabled=True), "web", exclude_domains=["web"]).skipped == ""


def test_a_domain_enabled_in_its_metadata_is_skipped_if_others_are_named() -> None:
    found = skipped("db-1", domains=(domain(override=Override(enabled=True)), DB))
    assert found == {"web": "not selected on the command line", "db-1": ""}


def test_a_domain_enabled_in_its_metadata_must_run_here_and_have_an_image() -> None:
    enabled = Override(enabled=True)
    elsewhere = domain(state=State.ELSEWHERE, override=enabled)
    assert skipped(domains=(elsewhere,)) == {"web": "migrated to another node"}
    assert skipped(domains=(domain(disks=(), override=enabled),)) == {"web": "no RBD image to back up"}


@pytest.mark.parametrize(
    ("freeze", "constants", "expected"),
    [
        ("", {}, ("auto", "FREEZE")),
        ("", {"freeze": "required"}, ("required", "FREEZE")),
        ("never", {"freeze": "required"}, ("never", "its metadata")),
        ("auto", {"freeze": "never"}, ("auto", "its metadata")),
    ],
)
def test_metadata_overrides_the_freeze_setting(
    freeze: str, constants: Any, expected: tuple[str, str]
) -> None:
    chosen = choice(Override(freeze=freeze), **constants)
    assert (chosen.freeze, chosen.freeze_from) == expected


def chosen_at(*states: State, names: tuple[str, ...] = (), **constants: Any) -> list[str]:
    """Return the decisions for one domain that several libvirts define in these states."""
    uris = (URI, OTHER_URI, "test:///default")
    defined = [domain(state=state, uri=uri) for uri, state in zip(uris, states)]
    return [one.skipped for one in choose(defined, settings(**constants), names)]


@pytest.mark.parametrize("state", [state for state in State if state.active])
def test_a_domain_in_several_libvirts_is_selected_where_it_is_active(state: State) -> None:
    assert chosen_at(State.ELSEWHERE, State.SHUT_OFF, state) == ["runs at test:///default"] * 2 + [""]


def test_an_inactive_domain_is_not_selected_where_it_migrated_from() -> None:
    assert chosen_at(State.ELSEWHERE, State.SHUT_OFF) == [f"also defined at {OTHER_URI}", ""]
    assert chosen_at(State.ELSEWHERE, State.SAVED) == [f"also defined at {OTHER_URI}", ""]


def test_otherwise_the_first_libvirt_is_selected() -> None:
    assert chosen_at(State.RUNNING, State.RUNNING) == ["", f"runs at {URI}"]
    assert chosen_at(State.SAVED, State.SHUT_OFF) == ["", f"also defined at {URI}"]
    assert chosen_at(State.ELSEWHERE, State.ELSEWHERE) == [
        "migrated to another node",
        f"also defined at {URI}",
    ]


def test_a_libvirt_that_cannot_read_the_domain_is_selected_last() -> None:
    problem = BackupError("cannot read the domain's definition")
    unreadable = domain(state=State.BUSY, disks=(), problem=problem)
    for state in (State.RUNNING, State.BUSY):
        both = [unreadable, domain(state=state, uri=OTHER_URI)]
        assert [one.skipped for one in choose(both, settings())] == [f"runs at {OTHER_URI}", ""]


def test_naming_a_domain_does_not_select_it_twice() -> None:
    assert chosen_at(State.SHUT_OFF, State.RUNNING, names=("web",)) == [f"runs at {OTHER_URI}", ""]


def test_domains_with_the_same_name_and_different_uuids_are_both_selected() -> None:
    assert [one.skipped for one in choose([WEB, domain("web", OTHER_UUID)], settings())] == ["", ""]


def test_a_domain_that_an_instant_restore_has_not_moved_yet_is_skipped() -> None:
    on_overlay = domain("web", disks=[rbd_disk(shown="vms/web-root.virt-rbd-backup.overlay"), broken_disk()])
    reason = "an instant restore of it is under way, or was interrupted: see `main.py status`"
    assert skipped("web", domains=(on_overlay,)) == {"web": reason}
    excluded = skipped(domains=(on_overlay,), exclude_domains=["web"])
    assert excluded == {"web": "in EXCLUDE_DOMAINS"}, "which holds without the instant restore, too"
    with raises(reason, Skipped):  # it began after the domain was selected
        require_complete(on_overlay)
