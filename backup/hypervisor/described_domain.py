"""Describes a domain as libvirt has it now: its state, disks, agent, and what its metadata overrides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import libvirt

from ..errors import BackupError
from ..model import Disk, Domain, Override, State
from . import domain_xml
from .disk_xml import Places
from .domain_start import started
from .domain_state import state_of
from .errors import libvirt_errors
from .metadata import override
from .next_start import with_next_start


def described(handle: Any, uri: str, places: Places) -> Domain:
    """Return the domain of a libvirt handle. Raises HypervisorError, DomainGone."""
    with libvirt_errors("cannot read the domain's definition"):
        xml = handle.XMLDesc(0)
        state = state_of(handle)
        inactive = handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if state.active else xml
        disks = all_disks(xml, inactive, places)
    problem = None
    try:  # metadata set with --config takes precedence over that of the running domain
        found = override(inactive) or override(xml)
    except BackupError as error:
        found, problem = None, error
    channel = domain_xml.agent_channel(xml)
    return Domain(
        uuid=handle.UUIDString(),
        name=handle.name(),
        state=state,
        disks=disks,
        agent_connected=domain_xml.agent_connected(xml),
        override=found or Override(),
        uri=uri,
        problem=problem,
        instance=handle.ID(),
        agent_channel=channel is not None,
        started=started(channel, places.local) if state is State.RUNNING else None,
    )


def all_disks(xml: str, inactive: str, places: Places) -> tuple[Disk, ...]:
    """Return the disks that the domain has now, then those of its next start: see with_next_start."""
    later = domain_xml.disks(inactive, places) if inactive is not xml else ()
    later = tuple(replace(disk, client="", written=False) for disk in later)  # nothing has them open yet
    return with_next_start(domain_xml.disks(xml, places), later)
