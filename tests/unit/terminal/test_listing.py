"""backup/terminal/tables.py: the list of domains and disks, as a table and as JSON."""

from __future__ import annotations

from backup.errors import BackupError
from backup.model import Disk, Override, State
from backup.selection import Choice
from backup.terminal.tables import listing, selection_json

from ..samples import OTHER_URI, URI, UUID, broken_disk, domain, foreign_disk, rbd_disk

CDROM = Disk("sda", "/x.iso", skipped="a cdrom")
PROBLEM = BackupError("the domain's metadata has 2 elements <backup>", "see virsh metadata")

WEB = Choice(domain(disks=[rbd_disk(), CDROM, foreign_disk()]))
OWN = Choice(domain("own"), selected_by="its metadata", freeze="never", freeze_from="its metadata")
BROKEN = Choice(domain("broken", disks=[rbd_disk(), broken_disk()]), selected_by="named")
SKIPPED = Choice(domain("db", disks=[rbd_disk(), CDROM], state=State.SHUT_OFF), "in EXCLUDE_DOMAINS")
BARE = Choice(domain("bare", disks=[]), "no RBD image to back up")


def test_the_list_shows_for_each_disk_whether_it_is_backed_up_and_why() -> None:
    assert listing([WEB, OWN, BROKEN, SKIPPED, BARE]) == (
        "domain  state     freeze                disk  source        backup\n"
        "web     running   auto (FREEZE)         vda   vms/web-root  yes (INCLUDE_DOMAINS)\n"
        "                                        sda   /x.iso        no: a cdrom\n"
        "                                        vdc   /srv/x.qcow2  no: no RBD image (file)\n"
        "own     running   never (its metadata)  vda   vms/web-root  yes (its metadata)\n"
        "broken  running   auto (FREEZE)         vda   vms/web-root  yes (named)\n"
        "                                        vdb   vms/gone      FAILS: a partition of an RBD image\n"
        "db      shut off  auto (FREEZE)         vda   vms/web-root  no: in EXCLUDE_DOMAINS\n"
        "                                        sda   /x.iso        no: in EXCLUDE_DOMAINS\n"
        "bare    running   auto (FREEZE)                             no: no RBD image to back up\n"
    )


def test_a_domain_with_a_problem_has_a_line_for_it_before_its_disks() -> None:
    failure = "FAILS: the domain's metadata has 2 elements <backup>"
    chosen = Choice(domain(problem=PROBLEM))
    unreadable = Choice(domain("odd", disks=[], problem=PROBLEM))
    left_out = Choice(domain("out", problem=PROBLEM), "in EXCLUDE_DOMAINS")
    assert listing([chosen, unreadable, left_out]) == (
        "domain  state    freeze         disk  source        backup\n"
        f"web     running  auto (FREEZE)                      {failure}\n"
        f"                                vda   vms/web-root  {failure}\n"
        f"odd     running  auto (FREEZE)                      {failure}\n"
        "out     running  auto (FREEZE)                      no: in EXCLUDE_DOMAINS\n"
        "                                vda   vms/web-root  no: in EXCLUDE_DOMAINS\n"
    )


def test_with_several_libvirts_each_domain_has_its_uri() -> None:
    here = Choice(domain(disks=[rbd_disk(), CDROM]), "disabled")
    there = Choice(domain(uri=OTHER_URI))
    assert listing([here, there]) == (
        "libvirt                  domain  state    freeze         disk  source        backup\n"
        f"{URI}           web     running  auto (FREEZE)  vda   vms/web-root  no: disabled\n"
        "                                                         sda   /x.iso        no: disabled\n"
        f"{OTHER_URI}  web     running  auto (FREEZE)  vda   vms/web-root  yes (INCLUDE_DOMAINS)\n"
    )


def test_the_list_as_json_has_the_same_data() -> None:
    (found,) = selection_json([BROKEN])
    assert found == {
        "name": "broken",
        "uuid": UUID,
        "libvirt": URI,
        "state": "running",
        "selected": True,
        "selected_by": "named",
        "reason": "",
        "problem": "",
        "freeze": "auto",
        "freeze_from": "FREEZE",
        "disks": [
            {"target": "vda", "source": "vms/web-root", "image": "vms/web-root", "reason": "", "gap": "none"},
            {
                "target": "vdb",
                "source": "vms/gone",
                "image": None,
                "reason": "a partition of an RBD image",
                "gap": "broken",
            },
        ],
    }


def test_the_list_as_json_has_skipped_and_failing_domains_too() -> None:
    web, skipped, bare, own = selection_json([WEB, SKIPPED, BARE, OWN])
    assert [disk["gap"] for disk in web["disks"]] == ["none", "none", "foreign"]  # type: ignore[attr-defined]
    assert (skipped["selected"], skipped["selected_by"]) == (False, "")
    assert (skipped["reason"], skipped["state"]) == ("in EXCLUDE_DOMAINS", "shut off")
    assert bare["disks"] == []
    assert (own["freeze"], own["freeze_from"], own["selected_by"]) == (
        "never",
        "its metadata",
        "its metadata",
    )
    failing = Choice(domain(override=Override(), problem=PROBLEM))
    assert [one["problem"] for one in selection_json([failing])] == [PROBLEM.message]
