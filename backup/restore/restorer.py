"""The command restore: finds the restore point, restores its images, and defines and starts the domain.

A node without Ceph's modules restores to files, one without libvirt's restores images: so they are imported
by what needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..command import COMMAND
from ..errors import BackupError, ConfigError, NotDefined
from ..model import Image, Level, image_named
from ..protocols import ClonesImages, Output, RestoreTarget, RunReporter
from ..restore_point import manifest
from ..restore_point.find import current_images, find_point
from ..settings import Settings
from ..stored import SavedDomain, SavedImage, StoredPoint
from ..system.stop_request import StopRequest
from ..system.transient import at_most_by_hand, outlasted
from .images import ImageRestore, RestoredImage, Wanted
from .new_file import NewFile
from .order import RestoreOrder
from .saved_memory import require_no_saved_memory

if TYPE_CHECKING:
    from ..ceph.cluster import Cluster
    from .domain import RestoredDomain


@dataclass(frozen=True)
class Restorer:
    """Carries out a restore order."""

    order: RestoreOrder
    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest

    def restore(self) -> Sequence[RestoredImage]:
        """Restore what the order selects.

        Raises ConfigError; BackupError if nothing was restored; NotDefined if the images were restored, but
        the domain could not be defined or started.
        """
        order = self.order
        point = find_point(self.points(), order.domain, order.at)
        saved = self.saved(point)
        images = current_images(_disks(saved, order.disks), point)
        if (order.to_file or order.to_image) and len(images) > 1:
            message = f"{saved.name} has several disks: {', '.join(image.target for image in images)}"
            raise ConfigError([BackupError(message, "select one with --disk TARGET")])
        restore = ImageRestore(
            *(saved.name, self.output, self.settings.stream_count, self.reporter, self.stop),
            clones=order.clone,
            checksums=saved.checksums,
            damaged=order.damaged,
        )
        if order.to_file:
            return restore.restore([(images[0], NewFile(order.to_file, images[0], order.force))])
        return self._into_cluster(saved, images, restore)

    def points(self) -> Sequence[StoredPoint]:
        """List the restore points, once the order is consistent. Raises ConfigError, BackupError."""
        self.order.require_consistent()
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        if self.order.clone:
            require_clones(self.output)
        listed = partial(self.output.restore_points, self.stop.check)
        retry_for = at_most_by_hand(self.settings.retry_for)
        return outlasted(listed, retry_for, self.reporter, "", self.stop.check)

    def _into_cluster(
        self, saved: SavedDomain, images: Sequence[SavedImage], restore: ImageRestore
    ) -> Sequence[RestoredImage]:
        """Restore to images of the cluster, and define the domain if that is ordered."""
        from ..ceph.abandonable import unless_silent

        places = self.places(images)
        with self._cluster(saved, images) as cluster:
            work = partial(self._into_places, cluster, saved, images, places, restore)
            images_there = list(places.values())
            return unless_silent(work, cluster, images_there, self.stop, self.reporter, restore.renaming)

    def places(self, images: Sequence[SavedImage]) -> Mapping[str, Image]:
        """Return where these images are restored to, by their targets. Raises BackupError."""
        places = {image.target: self.order.destination(_image(image)) for image in images}
        _require_different_names(images, places.values())
        return places

    def _cluster(self, saved: SavedDomain, images: Sequence[SavedImage]) -> Cluster:
        """Connect to the cluster that gets the images: for clones, that of the restore point's snapshots."""
        from ..ceph.cloned_image import clone_cluster
        from ..ceph.restore_cluster import restore_cluster

        if self.order.clone and images:
            parent = require_clones(self.output).parent(images[0])
            return clone_cluster(parent, self.settings, self.stop, self.reporter, saved.name)
        return restore_cluster(self.settings, self.stop, self.reporter, saved.name)

    def _into_places(
        self,
        cluster: Cluster,
        saved: SavedDomain,
        images: Sequence[SavedImage],
        places: Mapping[str, Image],
        restore: ImageRestore,
    ) -> Sequence[RestoredImage]:
        order = self.order
        with ExitStack() as stack:
            require_no_saved_memory(saved, places, self.settings, self.reporter, self.stop)
            require_no_overlay(cluster, places.values())
            domain = self.domain(saved, stack) if order.define else None
            if domain:
                domain.require_definable()
            xml = self.xml(domain, places, cluster) if domain else ""
            require_room(cluster, images, places, order.clone)
            wanted: Wanted = [(one, self._target(cluster, one, places[one.target])) for one in images]
            restored = restore.restore(wanted)
            if domain:
                define_on_images(domain, xml, order.start)
        return restored

    def _target(self, cluster: Cluster, saved: SavedImage, image: Image) -> RestoreTarget:
        from ..ceph.cloned_image import ClonedImage
        from ..ceph.new_image import NewImage

        arguments = (cluster, image, saved, self.order.force, self.reporter, self.stop)
        if self.order.clone:
            return ClonedImage(*arguments, parent=require_clones(self.output).parent(saved))
        return NewImage(*arguments)

    def saved(self, point: StoredPoint) -> SavedDomain:
        """Return what the restore point has of the domain; report what it lacks. Raises BackupError."""
        saved = manifest.unpack(self.output.manifest(point, self.stop.check))
        self.reporter.message(Level.INFO, saved.name, f"{saved.title}, {saved.consistency.value}")
        for text in saved.lacks:
            self.reporter.message(Level.WARNING, saved.name, text)
        return saved

    def xml(self, domain: RestoredDomain, places: Mapping[str, Image], cluster: Cluster) -> str:
        """Return the definition of the domain with its restored images. Raises BackupError."""
        from ..hypervisor.instant_xml import unplugged

        xml = domain.xml(places, cluster.monitors())
        if self.order.no_network:
            xml, left_out = unplugged(xml)
            for what in left_out:
                text = f"removed from the definition: {what} (--no-network)"
                self.reporter.message(Level.WARNING, domain.name, text)
            text = f"its network interfaces are down: virsh domif-setlink {domain.name} MAC up"
            self.reporter.message(Level.INFO, domain.name, text)
        return xml

    def domain(self, saved: SavedDomain, stack: ExitStack) -> RestoredDomain:
        """Return the domain as it will be defined; the stack closes its connection. Raises BackupError."""
        from ..hypervisor.connection import Hypervisor
        from .domain import RestoredDomain

        order, settings = self.order, self.settings
        if len(settings.libvirt_uris) > 1:
            message = f"LIBVIRT_URI has {len(settings.libvirt_uris)} URIs, --define needs exactly one"
            raise ConfigError([BackupError(message, "use a --config FILE with one URI in LIBVIRT_URI")])
        hypervisor = stack.enter_context(
            Hypervisor(settings.libvirt_uris[0], settings.libvirt_timeout, self.stop.check)
        )
        return RestoredDomain.from_saved(
            saved, hypervisor, order.name, order.new_uuid, order.force, self.reporter, settings.state_dir
        )


def define_on_images(domain: RestoredDomain, xml: str, start: bool) -> None:
    """Define the domain with its restored images, and start it if wanted. Raises NotDefined."""
    try:
        domain.define(xml)
    except BackupError as error:
        again = "then restore again with --force, which replaces the restored images"
        hint = "; ".join(filter(None, (error.hint, again)))
        raise NotDefined(f"the images are restored, but {error.message}", hint) from error
    if start:
        try:
            domain.start()
        except BackupError as error:
            raise NotDefined(f"the domain is restored, but {error.message}", error.hint) from error


def require_clones(output: Output) -> ClonesImages:
    """Return the output if its images can be cloned. Raises ConfigError."""
    if isinstance(output, ClonesImages):
        return output
    message = "--clone needs restore points that are snapshots of images"
    raise ConfigError([BackupError(message, 'those of OUTPUT = "rbd" are, see res/docs/rbd-output.md')])


def _disks(saved: SavedDomain, targets: Sequence[str]) -> Sequence[SavedImage]:
    by_target = {image.target: image for image in saved.images}
    hint = f"it has {', '.join(by_target)}"
    errors = [
        BackupError(f"the restore point of {saved.name} has no disk {target}", hint)
        for target in targets
        if target not in by_target
    ]
    if errors:
        raise ConfigError(errors)
    return [by_target[target] for target in dict.fromkeys(targets)] if targets else saved.images


def _image(saved: SavedImage) -> Image:
    image = image_named(saved.image)
    if image is None:
        message = f"invalid image name {saved.image!r} in the manifest"
        raise BackupError(message, f"choose another restore point: see `{COMMAND} restore-points`")
    return image


def _require_different_names(images: Sequence[SavedImage], places: Iterable[Image]) -> None:
    twice = [str(image) for image, count in Counter(places).items() if count > 1]
    if twice:
        message = f"several of the {len(images)} images would be restored to {', '.join(twice)}"
        raise ConfigError([BackupError(message, "restore one at a time with --disk TARGET --to-image")])


def require_no_overlay(cluster: Cluster, places: Iterable[Image]) -> None:
    """Raise BackupError if an instant restore to one of these images has not ended."""
    from ..ceph.overlay_image import image_id

    for image in places:
        if image_id(cluster, image.overlay):
            message = f"{image.overlay} exists: an instant restore to {image} has not ended"
            hint = (
                f"`{COMMAND} restore DOMAIN --instant` continues it, --abort ends it: see `{COMMAND} status`"
            )
            raise BackupError(message, hint)


def require_room(
    cluster: Cluster,
    images: Sequence[SavedImage],
    places: Mapping[str, Image],
    clones: bool = False,
) -> None:
    """Raise BackupError if a pool has no room for these images, or lacks the namespace of one."""
    from ..ceph.new_image import require_room as require_pool_has_room

    needed: Counter[str] = Counter()
    for image in images:
        pool = places[image.target].pool
        needed[pool] += 0
        data_pool = image.layout.data_pool
        data_bytes = 0 if clones else image.data_bytes
        needed[data_pool if data_pool and cluster.has_pool(data_pool) else pool] += data_bytes
    for pool, data_bytes in needed.items():
        require_pool_has_room(cluster, pool, data_bytes)
    for image in images:
        cluster.require_namespace(places[image.target])
