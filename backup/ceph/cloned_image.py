"""Restores an image as a clone of a repository's snapshot: it is there at once, nothing is copied."""

from __future__ import annotations

from functools import partial

import rbd

from ..model import ClusterAddress, Image, Level, ParentSnapshot
from ..protocols import Reporter
from ..settings import Settings
from ..stored import SavedImage
from ..system.stop_request import StopRequest
from .cluster import FEATURES, Cluster
from .errors import ClusterError
from .image_creation import create_image
from .new_image import IMPLIED, NewImage
from .restore_cluster import restore_cluster
from .retry import CephRetry

# Clones of the second format may be in another namespace than their parent.
CLONE_FORMAT = ("rbd_default_clone_format", "2")


class ClonedImage(NewImage):
    """A clone in the cluster of its parent, with the layout of the saved image."""

    def __init__(
        self,
        cluster: Cluster,
        image: Image,
        saved: SavedImage,
        force: bool,
        reporter: Reporter,
        stop: StopRequest,
        parent: ParentSnapshot,
    ) -> None:
        super().__init__(cluster, image, saved, force, reporter, stop)
        self._parent = parent

    def _create(self, image: Image) -> None:
        layout, parent = self._saved.layout, self._parent
        names = {"layering", *layout.features} - set(IMPLIED)
        fancy = "striping" in layout.features
        clone = partial(
            rbd.RBD().clone,
            self.cluster.pool_of(parent.image),
            parent.image.name,
            parent.snapshot,
            self.cluster.pool_of(image),
            image.name,
            features=sum(FEATURES[name] for name in names),
            order=layout.object_size.bit_length() - 1,
            stripe_unit=layout.stripe_unit if fancy else None,
            stripe_count=layout.stripe_count if fancy else None,
            data_pool=self._data_pool(layout),
        )
        self.cluster.set_option(*CLONE_FORMAT)
        with self.cluster.errors(f"cannot clone {parent.image}@{parent.snapshot} to", image):
            try:
                create_image(self.cluster, image, clone)
            except rbd.ImageExists as error:
                raise self._under_way() from error


def clone_cluster(
    parent: ParentSnapshot, settings: Settings, stop: StopRequest, reporter: Reporter, domain: str
) -> Cluster:
    """Connect to the cluster of a snapshot, for clones of it.

    As CEPH_USER if it is the cluster of CEPH_CONF, otherwise as the user of the repository. Raises
    ClusterError.
    """
    there = _parent_cluster(parent, settings, stop, reporter, domain)
    try:
        here = restore_cluster(settings, stop, reporter, domain)
    except ClusterError as error:  # that cluster may be what was lost
        stop.check()
        text = f"the clones are made in the repository's cluster: {error}"
        reporter.message(Level.WARNING, domain, text)
        return there
    except BaseException:  # whatever it was, a stop included: no connection stays open
        there.close()
        raise
    chosen, other = (here, there) if here.fsid == there.fsid else (there, here)
    other.close()
    return chosen


def has_parent(
    cluster: Cluster, parent: ParentSnapshot, settings: Settings, stop: StopRequest, reporter: Reporter
) -> bool:
    """Return whether a snapshot is in this cluster. Raises ClusterError."""
    with _parent_cluster(parent, settings, stop, reporter, "") as there:
        return there.fsid == cluster.fsid


def _parent_cluster(
    parent: ParentSnapshot, settings: Settings, stop: StopRequest, reporter: Reporter, domain: str
) -> Cluster:
    def report(level: Level, text: str) -> None:
        reporter.message(level, domain, text)

    retry = CephRetry(settings.ceph_stall_timeout, stop.check, report)
    address = ClusterAddress(user=parent.user)
    return Cluster(address, "", parent.conf_file, settings.ceph_timeout, retry=retry)
