"""What an admin orders to be restored, and where to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..command import COMMAND
from ..errors import BackupError, ConfigError
from ..model import Image, image_named


@dataclass(frozen=True)
class RestoreOrder:
    """The domain, the restore point and the destination; "", () and False for options that were not given.

    `to_pool` is pool or pool/namespace, `to_image` pool/image or pool/namespace/image.
    """

    domain: str
    at: str = "latest"
    disks: Sequence[str] = ()
    to_pool: str = ""
    suffix: str = ""
    to_image: str = ""
    to_file: str = ""
    clone: bool = False
    define: bool = False
    name: str = ""
    new_uuid: bool = False
    start: bool = False
    no_network: bool = False
    force: bool = False
    damaged: bool = False
    instant: bool = False
    abort: bool = False
    discard: bool = False

    def complete(self) -> RestoreOrder:
        """Return it with what its options imply."""
        return replace(self, define=True, start=True) if self.instant else self

    def require_consistent(self) -> None:
        """Raise ConfigError with all options that contradict each other."""
        errors = []
        places = [option for option in ("to_pool", "to_image", "to_file") if getattr(self, option)]
        if len(places) > 1:
            errors.append(f"{' and '.join(map(_option, places))} exclude each other")
        errors += [
            f"--suffix and {_option(place)} exclude each other"
            for place in ("to_image", "to_file")
            if self.suffix and getattr(self, place)
        ]
        errors += [
            f"{_option(option)} requires --define"
            for option in ("name", "new_uuid", "start", "no_network")
            if getattr(self, option) and not self.define
        ]
        errors += [
            f"--instant and {_option(option)} exclude each other"
            for option in ("disks", "to_image", "to_file", "clone")
            if self.instant and getattr(self, option)
        ]
        if self.abort and not self.instant:
            errors.append("--abort requires --instant")
        if self.discard and not self.abort:
            errors.append("--discard requires --abort")
        if self.define and self.to_file and not self.instant:
            errors.append(
                "--define and --to-file exclude each other: libvirt gets no domain with files as disks"
            )
        if self.clone and self.damaged:
            errors.append("--clone and --damaged exclude each other: clones are not compared")
        if self.clone and self.to_file:
            errors.append("--clone and --to-file exclude each other: a clone is an image")
        if self.to_image and not image_named(self.to_image):
            errors.append(f"--to-image {self.to_image}: expected POOL/IMAGE or POOL/NAMESPACE/IMAGE")
        if self.to_pool and not image_named(f"{self.to_pool}/image"):
            errors.append(f"--to-pool {self.to_pool}: expected POOL or POOL/NAMESPACE")
        if errors:
            raise ConfigError([BackupError(error, f"see {COMMAND} restore --help") for error in errors])

    @property
    def options(self) -> str:
        """The options that say where to, and what may be replaced, as they are typed in a shell."""
        at = "" if self.at == "latest" else self.at
        values = {"at": at, "to_pool": self.to_pool, "suffix": self.suffix, "name": self.name}
        found = [f"{_option(option)}={value}" for option, value in values.items() if value]
        found += [_option(option) for option in ("new_uuid", "force", "damaged") if getattr(self, option)]
        return shlex.join(found)

    def destination(self, image: Image) -> Image:
        """Return the image that a saved image is restored to."""
        if self.to_image:
            return image_named(self.to_image) or image
        named = replace(image, name=image.name + self.suffix)
        if self.to_pool:
            pool, _, namespace = self.to_pool.partition("/")
            named = replace(named, pool=pool, namespace=namespace)
        return named


def _option(option: str) -> str:
    return "--disk" if option == "disks" else f"--{option.replace('_', '-')}"
