"""A restored domain's place in libvirt: whether it is free, and how the domain gets there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .cleanly import undone_by
from .copied_xml import nvram_beside
from .disk_xml import Places
from .domain_xml import disks
from .errors import BackupError, reason
from .hypervisor import Hypervisor
from .model import Image, Level, SavedDomain, State
from .protocols import Reporter
from .restored_xml import Redefinition, redefined


@dataclass(frozen=True)
class RestoredDomain:
    """A saved domain, to be defined under this name and UUID once its images are there."""

    saved: SavedDomain
    hypervisor: Hypervisor
    name: str
    uuid: str
    force: bool
    reporter: Reporter

    @classmethod
    def of(
        cls,
        saved: SavedDomain,
        hypervisor: Hypervisor,
        name: str,
        new_uuid: bool,
        force: bool,
        reporter: Reporter,
    ) -> RestoredDomain:
        """`name`: "" for the saved one. `force`: take the place of a domain that is shut off."""
        identity = str(uuid.uuid4()) if new_uuid else saved.point.uuid
        return cls(saved, hypervisor, name or saved.name, identity, force, reporter)

    @property
    def copy(self) -> bool:
        return (self.name, self.uuid) != (self.saved.name, self.saved.point.uuid)

    def require_free(self) -> None:
        """Raise BackupError unless the domain may be defined."""
        for other in self.hypervisor.domains():
            if other.uuid == self.uuid and other.name == self.name and self.force:
                if other.state is not State.SHUT_OFF:
                    message = f"domain {other.name} is {other.state.value}"
                    hint = f"virsh destroy {other.name}; virsh managedsave-remove {other.name}"
                    raise BackupError(message, hint)
            elif other.uuid == self.uuid:
                message = f"domain {other.name} with the UUID {other.uuid} is defined here"
                hint = "--name NEW --new-uuid defines a copy beside it"
                if other.name == self.name:
                    hint += ", --force replaces it"
                raise BackupError(message, hint)
            elif other.name == self.name:
                message = f"another domain {other.name} (UUID {other.uuid}) is defined here"
                raise BackupError(message, "--name NEW --new-uuid defines it beside that one")
        path = self._nvram_path
        if path and os.path.exists(path) and not self.force:
            raise BackupError(f"the NVRAM {path} exists", "move it out of the way, or --force replaces it")

    def xml(self, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]) -> str:
        """Give its XML with these images; say what can't be as it was. Raises BackupError."""
        change = Redefinition(self.name, self.uuid, self.copy, images, monitors)
        xml, left_out = redefined(self.saved.definition.inactive_xml, change)
        for what in left_out:
            self.reporter.message(Level.WARNING, self.name, f"left out of the copy's definition: {what}")
        if not self.copy:
            for image in self.saved.images:
                if image.target not in images:
                    text = f"{image.target} is as it was in the definition: its image is not restored"
                    self.reporter.message(Level.WARNING, self.name, text)
        return xml

    @contextmanager
    def running_once(self, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Run the copy, isolated, during the block, which gets its XML; nothing is left of it afterwards."""
        change = Redefinition(self.name, self.uuid, True, images, monitors, isolated=True)
        xml, _ = redefined(self.saved.definition.inactive_xml, change)
        try:
            if self._nvram_path:
                self._write_nvram(self._nvram_path)
            with undone_by(partial(self.hypervisor.destroy, self.uuid), self.reporter, self.name):
                self.hypervisor.run_once(xml)
                yield xml
        finally:
            if self._nvram_path:
                Path(self._nvram_path).unlink(missing_ok=True)

    def define(self, xml: str, start: bool) -> None:
        """Put its NVRAM in place, define it, and start it where asked. Raises BackupError."""
        if self._nvram_path:
            self._write_nvram(self._nvram_path)
        self.hypervisor.define(xml)
        self.reporter.message(Level.INFO, self.name, f"defined, UUID {self.uuid}")
        self._tell_of_secrets(xml)
        if start:
            self.hypervisor.start(self.uuid)
            self.reporter.message(Level.INFO, self.name, "started")

    @property
    def _nvram_path(self) -> str:
        definition = self.saved.definition
        if not definition.nvram:
            return ""
        return nvram_beside(definition.nvram_path, self.name) if self.copy else definition.nvram_path

    def _write_nvram(self, path: str) -> None:
        if not self.hypervisor.local:
            message = f"the NVRAM {path} can't be written to another node, {self.hypervisor.uri}"
            raise BackupError(message, "restore on that node, with its own libvirt as LIBVIRT_URI")
        try:
            with open(path, "wb", opener=_closed_to_others) as file:
                file.write(self.saved.definition.nvram)
        except OSError as error:
            hint = f"make {Path(path).parent}; libvirt's package does"
            raise BackupError(f"cannot write the NVRAM {path}: {reason(error)}", hint) from error

    def _tell_of_secrets(self, xml: str) -> None:
        """Say what keys libvirt has not got: the domain is defined, but will not start."""
        addresses = {disk.address for disk in disks(xml, Places(lambda _: "<pool/>", lambda _: None))}
        for address in addresses:
            try:
                self.hypervisor.secret(address)
            except BackupError as error:
                self.reporter.message(Level.WARNING, self.name, str(error))


def _closed_to_others(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
