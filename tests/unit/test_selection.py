"""backup/selection.py: what is backed up, and why the rest is not."""

from __future__ import annotations

from typing import Any

import pytest

from backup.errors import ConfigError
from backup.model import Disk, Domain
from backup.selection import choose, covered

from .samples import OTHER_UUID, UUID, domain, rbd_disk, settings

WEB = domain("web", UUID, disks=[rbd_disk("vda", "vms/web-root"), rbd_disk("vdb", "ssd/scratch/web-tmp")])
DB = domain("db-1", OTHER_UUID)
FILE = domain("file", "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e03", disks=[Disk("vda", "/x.img", not_covered="…")])
ALL = (WEB, DB, FILE)


def skipped(*names: str, domains: tuple[Domain, ...] = ALL, **constants: Any) -> dict[str, str]:
    return {one.domain.name: one.skipped for one in choose(domains, settings(**constants), names)}


def test_without_configuration_every_domain_with_an_rbd_image_is_backed_up() -> None:
    assert skipped() == {"web": "", "db-1": "", "file": "no RBD image to back up"}


@pytest.mark.parametrize("pattern", ["db-*", "db-[0-9]", OTHER_UUID, "*2e02"])
def test_only_what_include_domains_matches_is_backed_up(pattern: str) -> None:
    assert skipped(include_domains=[pattern]) == {
        "web": "not in INCLUDE_DOMAINS",
        "db-1": "",
        "file": "not in INCLUDE_DOMAINS",
    }


def test_exclude_domains_wins_over_include_domains() -> None:
    assert skipped(include_domains=["web", "db-1"], exclude_domains=["w?b"])["web"] == "in EXCLUDE_DOMAINS"


def test_patterns_mind_upper_and_lower_case_as_libvirt_does() -> None:
    assert skipped(include_domains=["WEB"])["web"] == "not in INCLUDE_DOMAINS"


@pytest.mark.parametrize("name", ["web", "w*", UUID, UUID.upper()])
def test_named_domains_take_the_place_of_include_domains(name: str) -> None:
    found = skipped(name, include_domains=["db-1"])
    assert (found["web"], found["db-1"]) == ("", "not named")


def test_a_name_with_glob_characters_in_it_matches_itself() -> None:
    assert skipped("a[b]*", domains=(domain("a[b]*"),)) == {"a[b]*": ""}


def test_every_unknown_name_is_told_together_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        skipped("wbe", "web", "dc-*")
    assert [error.message for error in caught.value.errors] == [
        "there is no domain 'wbe'",
        "there is no domain 'dc-*'",
    ]
    assert caught.value.errors[0].hint == "this node's domains: web, db-1, file"


def test_an_excluded_image_leaves_its_disk_uncovered_and_says_so() -> None:
    (choice,) = choose([WEB], settings(exclude_images=["ssd/scratch/*"]))
    root, scratch = choice.domain.disks
    assert choice.skipped == ""
    assert (str(root.image), root.not_covered) == ("vms/web-root", "")
    assert (scratch.image, scratch.not_covered) == (None, "in EXCLUDE_IMAGES")
    assert covered(WEB, settings(exclude_images=["ssd/scratch/*"])) == choice.domain


def test_a_domain_whose_every_image_is_excluded_is_not_backed_up() -> None:
    assert skipped(exclude_images=["*"])["web"] == "no RBD image to back up"
