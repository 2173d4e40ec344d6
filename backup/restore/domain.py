"""Defines a restored domain in libvirt: checks that its name and UUID are free, writes its NVRAM."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..errors import BackupError, NotDrillable
from ..hypervisor.backing_chain import with_layers
from ..hypervisor.connection import Hypervisor
from ..hypervisor.copy_xml import nvram_beside, tpm_beside
from ..hypervisor.disk_xml import Places
from ..hypervisor.domain_xml import disks, drives_without_image, require_xml, required_media
from ..hypervisor.errors import HypervisorError
from ..hypervisor.firmware import loader_beside, new_nvram, writable_loader
from ..hypervisor.next_start import saved_targets
from ..hypervisor.node_files import PACKAGED, needed_files
from ..hypervisor.overlay_xml import Export
from ..hypervisor.restored_xml import NOT_RESTORED, Redefinition, Restored, redefined
from ..hypervisor.tpm_state import tpm_place
from ..model import TPM_STATE, Disk, Domain, Image, Level, NodeFile, State
from ..protocols import Reporter
from ..stored import SavedDomain
from .node_files import NVRAM, NodeFiles

RESTART_LIMIT = 30.0  # seconds that a restart of libvirt may take
RESTART_POLL = 0.5
MISSING_HINT = "put it there before the start, or install the package that has it"


@dataclass(frozen=True)
class RestoredDomain:
    """A saved domain that will be defined with this name and UUID when its images are restored."""

    saved: SavedDomain
    hypervisor: Hypervisor
    name: str
    uuid: str
    force: bool
    reporter: Reporter
    state_dir: str

    @classmethod
    def from_saved(
        cls,
        saved: SavedDomain,
        hypervisor: Hypervisor,
        name: str,
        new_uuid: bool,
        force: bool,
        reporter: Reporter,
        state_dir: str,
    ) -> RestoredDomain:
        """`name`: "" for the saved name. `force`: replace a domain that is shut off.

        In `state_dir` is recorded what is written to this node. Raises BackupError for a damaged definition.
        """
        for xml in filter(None, (saved.definition.inactive_xml, saved.definition.live_xml)):
            require_xml(xml)
        identity = str(uuid.uuid4()) if new_uuid else saved.point.uuid
        return cls(saved, hypervisor, name or saved.name, identity, force, reporter, state_dir)

    @property
    def copy(self) -> bool:
        return (self.name, self.uuid) != (self.saved.name, self.saved.point.uuid)

    def require_free(self) -> None:
        """Raise BackupError unless the domain's name and UUID are free, or may be replaced."""
        if "/" in self.name:  # libvirt refuses it too, but files are named after it before
            raise BackupError(f"invalid name {self.name!r}", "a domain's name cannot contain /")
        for other in self.hypervisor.domains():
            if other.uuid == self.uuid and other.name == self.name and self.force:
                _require_shut_off(other)
            elif other.uuid == self.uuid:
                message = f"the domain {other.name} (UUID {other.uuid}) is already defined here"
                hint = "--name NEW --new-uuid defines a copy"
                if other.name == self.name:
                    hint += ", --force replaces it"
                raise BackupError(message, hint)
            elif other.name == self.name:
                message = f"another domain named {other.name} (UUID {other.uuid}) is already defined here"
                raise BackupError(message, "--name NEW --new-uuid defines a copy")

    def require_definable(self) -> None:
        """Raise BackupError unless the domain can be defined and its NVRAM written."""
        self.require_free()
        self._files.require_writable(self.hypervisor.local)
        if not self.force:
            self._files.require_free()

    def xml(self, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]) -> str:
        """Return its XML with these images; warn of all that differs. Raises BackupError."""
        change = Redefinition(self.name, self.uuid, self.copy, self.attached(images), monitors)
        xml, left_out = redefined(self._definition(images), change)
        inactive = self._with_layers
        drives = drives_without_image(inactive)
        saved = {target: one for target, one in self._saved_targets.items() if target not in drives}
        not_restored = [target for target, one in saved.items() if one not in images]
        names = {one.target: one.image for one in self.saved.images}
        for text in (
            *(f"removed from the copy's definition: {what}" for what in left_out),
            *(
                f"{target}: not restored, the definition still names its original image"
                for target in not_restored
                if not self.copy
            ),
            *(
                f"{target}: restored, but not in the definition: it was attached only to the running domain"
                for target in images
                if target not in saved.values()
            ),
            *(
                f"{disk.target}: gets {names[one]}; its next start would have given it {disk.image}, "
                "which is not in the backup"
                for disk in _disks_of(inactive)
                if disk.image and (one := saved.get(disk.target)) and names[one] != str(disk.image)
            ),
        ):
            self.reporter.message(Level.WARNING, self.name, text)
        if not self.copy:
            self._warn_of_missing_media(xml)
        return xml

    def isolated_xml(
        self,
        images: Mapping[str, Image],
        monitors: Sequence[tuple[str, str]] = (),
        exports: Mapping[str, Export] = MappingProxyType({}),
    ) -> str:
        """Return the XML of an isolated copy with these images, or overlays over these exports.

        Both by the targets that they were saved with. Raises BackupError.
        """
        definition = self._with_layers if exports else self._definition(images)
        change = Redefinition(
            *(self.name, self.uuid, True, self.attached(images), monitors, True, self.attached(exports))
        )
        xml, left_out = redefined(definition, change)
        for what in left_out:
            level = Level.WARNING if what.endswith(NOT_RESTORED) else Level.INFO
            self.reporter.message(level, self.name, f"removed from the copy's definition: {what}")
        return xml

    @contextmanager
    def running_temporarily(self, xml: str) -> Iterator[None]:
        """Run an isolated copy with this XML during the block; nothing of it is left afterwards.

        Its record stays where it cannot be ended. Raises NotDrillable if its files cannot be written here.
        """
        named = {path for _, path in needed_files(xml)}
        files = replace(self._files, shared=[one for one in self._files.shared if one.path in named])
        try:
            files.require_writable(self.hypervisor.local)
        except BackupError as error:
            raise NotDrillable(error.message, error.hint) from error
        created = new_nvram(xml, self.name) if self.hypervisor.local else ()
        with files.written(self.uuid, self.end, created):
            self.hypervisor.run_once(xml)
            yield

    def end(self) -> None:
        """End the copy that runs; a libvirt that is being restarted is waited for. Raises HypervisorError."""
        deadline = time.monotonic() + RESTART_LIMIT
        while True:
            try:
                return self.hypervisor.destroy(self.uuid)
            except HypervisorError as error:
                if not error.transient or time.monotonic() > deadline:
                    raise
            time.sleep(RESTART_POLL)

    def define(self, xml: str) -> None:
        """Define it and write its NVRAM. Raises BackupError, also if its name has been taken meanwhile."""
        self.define_for_now(xml)
        self.set_autostart()

    def define_for_now(self, xml: str, again: bool = False) -> None:
        """The same, but let libvirt not start it by itself yet. `again`: replace what was begun before."""
        domain = replace(self, force=True) if again else self
        domain.require_definable()
        with self._files.replaced():
            self.hypervisor.define(xml)
        self.reporter.message(Level.INFO, self.name, f"defined, UUID {self.uuid}")
        self._warn_of_new_tpm()
        self._restore_missing_files(xml)
        self._warn_of_missing_secrets(xml)

    def start(self) -> None:
        """Start it. Raises HypervisorError."""
        self.hypervisor.start(self.uuid)
        self.reporter.message(Level.INFO, self.name, "started")

    def attached(self, images: Mapping[str, Restored]) -> Mapping[str, Restored]:
        """Return the restored images by their targets in the definition, which is that of the next start."""
        return {target: images[one] for target, one in self._saved_targets.items() if one in images}

    @property
    def _saved_targets(self) -> Mapping[str, str]:
        saved, skipped = self.saved, {disk.target for disk in self.saved.skipped_disks}
        names = {one.target: one.image for one in saved.images}
        return saved_targets(_disks_of(self._with_layers), names, skipped)

    def _definition(self, images: Mapping[str, Image]) -> str:
        """Return the definition to change: with its layers, where headers of qcow2 name the original's."""
        names = {one.target: one.image for one in self.saved.images}
        moved = any(str(image) != names.get(target) for target, image in images.items())
        return self._with_layers if self.copy or moved else self.saved.definition.inactive_xml

    @property
    def _with_layers(self) -> str:
        return with_layers(self.saved.definition.inactive_xml, self.saved.definition.live_xml)

    @property
    def _files(self) -> NodeFiles:
        definition, loader = self.saved.definition, self._own_loader
        own = [*self._tpm_state, *(loader.values())]
        if definition.nvram:
            path = definition.nvram_path
            path = nvram_beside(path, self.name) if self.copy else path
            own.insert(0, NodeFile(NVRAM, path, definition.nvram))
        shared = [file for file in definition.files if file.use != TPM_STATE and file.path not in loader]
        hypervisor = self.hypervisor
        return NodeFiles(
            own,
            shared if hypervisor.local else (),
            *(self.reporter, self.name, hypervisor.uri, self.state_dir, hypervisor.needed_paths),
        )

    @property
    def _own_loader(self) -> Mapping[str, NodeFile]:
        """The firmware that the guest writes to, at its place for the restored domain, by its saved path.

        A file of a package stays shared with other domains, but for a copy.
        """
        definition = self.saved.definition
        loader = writable_loader(definition.inactive_xml)
        place = loader_beside(loader, self.name) if self.copy else loader
        own = "" if PACKAGED.match(place) else loader
        return {file.path: replace(file, path=place) for file in definition.files if file.path == own}

    @property
    def _tpm_state(self) -> Sequence[NodeFile]:
        """The TPM's state at its place for the restored domain: what the definition does not name has none.

        The running domain may have had another TPM than its next start would give it.
        """
        original = self.saved.point.uuid
        place = tpm_place(self.saved.definition.inactive_xml, original)
        copied = tpm_beside(place, self.name, original, self.uuid) if self.copy and place else place
        return [
            replace(file, path=copied + file.path[len(place) :])
            for file in self.saved.definition.files
            if file.use == TPM_STATE and place and place in (file.path, os.path.dirname(file.path))
        ]

    def _warn_of_new_tpm(self) -> None:
        """Warn of a TPM that starts without the state that it had."""
        place = tpm_place(self.saved.definition.inactive_xml, self.saved.point.uuid)
        if place and not self._tpm_state:
            text = f"the backup has no state of its TPM ({place}): keys that the guest had stored are missing"
            self.reporter.message(Level.WARNING, self.name, text)

    def _restore_missing_files(self, xml: str) -> None:
        """Restore files that the domain boots from or needs; warn of those that this node still lacks."""
        self._files.add_missing()
        for use, path in needed_files(xml):
            if self.hypervisor.local and not os.path.exists(path):
                error = BackupError(f"the {use} {path} does not exist on this node", MISSING_HINT)
                self.reporter.message(Level.WARNING, self.name, str(error))

    def set_autostart(self) -> None:
        """Set it as it was saved, but not for a copy: the domain is defined, whether it succeeds or not."""
        autostart = self.saved.definition.autostart
        if autostart is None:
            return
        if self.copy:
            if autostart:
                text = f"without autostart, which the original has: virsh autostart {self.name}"
                self.reporter.message(Level.INFO, self.name, text)
            return
        try:
            self.hypervisor.set_autostart(self.uuid, autostart)
        except BackupError as error:
            self.reporter.message(Level.WARNING, self.name, str(error))
            return
        if autostart:
            self.reporter.message(Level.INFO, self.name, "autostart is set again")

    def _warn_of_missing_media(self, xml: str) -> None:
        """Warn of media that this node lacks: the domain can be defined, but not started."""
        for target, path in required_media(xml).items():
            if self.hypervisor.local and not os.path.exists(path):
                hint = f"before the start: virsh change-media {self.name} {target} --eject --config"
                error = BackupError(f"{target}: its medium {path} does not exist on this node", hint)
                self.reporter.message(Level.WARNING, self.name, str(error))

    def _warn_of_missing_secrets(self, xml: str) -> None:
        """Warn of cephx keys that libvirt lacks: the domain is defined, but will not start."""
        for address in {disk.address for disk in _disks_of(xml)}:
            try:
                self.hypervisor.secret(address)
            except BackupError as error:
                self.reporter.message(Level.WARNING, self.name, str(error))


def _disks_of(xml: str) -> Sequence[Disk]:
    """Return the disks in a definition, without asking libvirt for its storage pools."""
    return disks(xml, Places(lambda _: "<pool/>", lambda _: None))


def _require_shut_off(domain: Domain) -> None:
    if domain.state is not State.SHUT_OFF:
        hint = f"virsh destroy {domain.name}; virsh managedsave-remove {domain.name}"
        raise BackupError(f"domain {domain.name} is {domain.state.value}", hint)
