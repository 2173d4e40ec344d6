"""backup/run/list_domains.py: what a listing names besides disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.hypervisor import tpm_state
from backup.hypervisor.connections import Hypervisors
from backup.model import Gap
from backup.run.list_domains import list_domains, with_unsaved_files
from backup.selection import Choice

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, settings

TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


def listed(directory: Path, recorder: Recorder, **constants: object) -> dict[str, Choice]:
    web = domain_element("web", UUID, rbd("vms/a"), system="<kernel>/no/vmlinuz</kernel>")
    db = domain_element("db", OTHER_UUID, rbd("vms/b") + TPM)
    uri = node_uri(directory / "node.xml", web, db)
    chosen = settings(libvirt_uri=uri, **constants)
    with Hypervisors([uri]) as hypervisors:
        found = list_domains((), hypervisors, chosen, recorder)
        found = with_unsaved_files(found, hypervisors, chosen, lambda: None)
    return {choice.domain.name: choice for choice in found}


def test_files_that_a_domain_needs_and_that_are_not_saved_are_listed_like_disks(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpm_state, "SWTPM", str(tmp_path))
    found = listed(tmp_path, recorder)
    _, kernel = found["web"].domain.disks
    assert (str(kernel), kernel.skipped) == (
        "kernel:/no/vmlinuz (/no/vmlinuz)",
        "no such file or directory",
    )
    assert "cannot read the state of the domain's TPM" in str(found["db"].domain.problem)
    assert listed(tmp_path, recorder, uncovered_disks="fail")["web"].domain.disks[1].gap is Gap.BROKEN
    assert len(listed(tmp_path, recorder, exclude_domains=["web"])["web"].domain.disks) == 1
