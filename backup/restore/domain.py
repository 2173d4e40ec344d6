"""A restored domain's place in libvirt: whether it is free, and how the domain gets there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import BackupError, reason
from ..hypervisor.connection import Hypervisor
from ..hypervisor.copy_xml import nvram_beside
from ..hypervisor.disk_xml import Places
from ..hypervisor.domain_xml import disks
from ..hypervisor.restored_xml import Redefinition, redefined
from ..model import Disk, Image, Level, State
from ..protocols import Reporter
from ..stored import SavedDomain
from ..system.undo import undone_by

RESTORING = ".virt-rbd-backup.restoring"  # end of a name under which an NVRAM is written


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
        """Raise BackupError unless the domain's name and UUID are free, or may be taken."""
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

    def require_definable(self) -> None:
        """Raise BackupError unless the domain may be defined, and its NVRAM be written."""
        self.require_free()
        path = self._nvram_path
        if path:
            self._require_writable(path)
            if os.path.exists(path) and not self.force:
                hint = "move it out of the way, or --force replaces it"
                raise BackupError(f"the NVRAM {path} exists", hint)

    def xml(self, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]) -> str:
        """Give its XML with these images; say what can't be as it was. Raises BackupError."""
        change = Redefinition(self.name, self.uuid, self.copy, images, monitors)
        xml, left_out = redefined(self.saved.definition.inactive_xml, change)
        targets = {disk.target for disk in _disks_of(self.saved.definition.inactive_xml)}
        kept = [one.target for one in self.saved.images if one.target in targets - set(images)]
        for text in (
            *(f"left out of the copy's definition: {what}" for what in left_out),
            *(
                f"{target} is as it was in the definition: its image is not restored"
                for target in kept
                if not self.copy
            ),
            *(
                f"{target} is restored, but not in the definition: the domain had it only while it ran"
                for target in images
                if target not in targets
            ),
        ):
            self.reporter.message(Level.WARNING, self.name, text)
        return xml

    @contextmanager
    def running_once(self, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Run the copy, isolated, during the block, which gets its XML; nothing is left of it afterwards."""
        change = Redefinition(self.name, self.uuid, True, images, monitors, isolated=True)
        xml, _ = redefined(self.saved.definition.inactive_xml, change)
        with ExitStack() as stack:
            if self._nvram_path:
                self._require_writable(self._nvram_path)
                remove = partial(_remove_nvram, self._nvram_path)
                stack.enter_context(undone_by(remove, self.reporter, self.name))
                self._write_nvram(self._nvram_path)  # over what a killed drill left: no domain has that name
            destroy = partial(self.hypervisor.destroy, self.uuid)
            stack.enter_context(undone_by(destroy, self.reporter, self.name))
            self.hypervisor.run_once(xml)
            yield xml

    def define(self, xml: str) -> None:
        """Define it, and put its NVRAM in place. Raises BackupError, also if its place is taken by now."""
        self.require_definable()
        with self._nvram_replaced():
            self.hypervisor.define(xml)
        self.reporter.message(Level.INFO, self.name, f"defined, UUID {self.uuid}")
        self._tell_of_secrets(xml)

    def start(self) -> None:
        """Start it. Raises HypervisorError."""
        self.hypervisor.start(self.uuid)
        self.reporter.message(Level.INFO, self.name, "started")

    @property
    def _nvram_path(self) -> str:
        definition = self.saved.definition
        if not definition.nvram:
            return ""
        return nvram_beside(definition.nvram_path, self.name) if self.copy else definition.nvram_path

    def _require_writable(self, nvram_path: str) -> None:
        if not self.hypervisor.local:
            message = f"the NVRAM {nvram_path} can't be written to another node, {self.hypervisor.uri}"
            raise BackupError(message, "restore on that node, with its own libvirt as LIBVIRT_URI")
        directory = os.path.dirname(nvram_path)
        if not os.access(directory, os.W_OK | os.X_OK):
            message = f"cannot write the NVRAM {nvram_path}: {directory} is missing, or can't be written to"
            hint = "libvirt's package makes it; a service may write to its ReadWritePaths alone"
            raise BackupError(message, hint)

    @contextmanager
    def _nvram_replaced(self) -> Iterator[None]:
        """Have the NVRAM ready, beside what is there, during the block, and in its place afterwards."""
        if not self._nvram_path:
            yield
            return
        filling = f"{self._nvram_path}{RESTORING}"
        with undone_by(partial(_remove_nvram, filling), self.reporter, self.name):
            self._write_nvram(filling)
            yield
            with _nvram_errors("write", self._nvram_path):
                os.replace(filling, self._nvram_path)

    def _write_nvram(self, path: str) -> None:
        with _nvram_errors("write", path), open(path, "wb", opener=_closed_to_others) as file:
            file.write(self.saved.definition.nvram)

    def _tell_of_secrets(self, xml: str) -> None:
        """Say what keys libvirt has not got: the domain is defined, but will not start."""
        for address in {disk.address for disk in _disks_of(xml)}:
            try:
                self.hypervisor.secret(address)
            except BackupError as error:
                self.reporter.message(Level.WARNING, self.name, str(error))


def _disks_of(xml: str) -> Sequence[Disk]:
    """Give a definition's disks by what it alone tells of them."""
    return disks(xml, Places(lambda _: "<pool/>", lambda _: None))


def _remove_nvram(path: str) -> None:
    """Remove it; already gone counts as success."""
    with _nvram_errors("remove", path):
        Path(path).unlink(missing_ok=True)


@contextmanager
def _nvram_errors(action: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = f"is there room in {Path(path).parent}, and may it be written to?"
        raise BackupError(f"cannot {action} the NVRAM {path}: {reason(error)}", hint) from error


def _closed_to_others(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
