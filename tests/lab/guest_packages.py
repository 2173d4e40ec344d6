"""The guest's kernel and programs: Debian packages, unpacked into a cache, never installed.

Installing a kernel would alter the machine's boot configuration.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.programs import run_program

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
# From Debian 14 on the image is a meta package too.
KERNEL_PARTS = ("linux-image-", "linux-base-", "linux-binary-", "linux-modules-")
PROGRAM_PACKAGES = ("busybox-static", "qemu-guest-agent")


@dataclass(frozen=True)
class GuestPackages:
    """The unpacked packages, below one root directory."""

    root: Path

    @property
    def kernel(self) -> Path:
        return _only(self.root, "**/vmlinuz*")

    @property
    def modules(self) -> Path:
        return _only(self.root, "**/modules.builtin").parent

    @property
    def busybox(self) -> Path:
        return _only(self.root, "**/bin/busybox")

    @property
    def agent(self) -> Path:
        return _only(self.root, "**/sbin/qemu-ga")


def guest_packages() -> GuestPackages:
    """The packages from the cache; downloaded when they are not there yet."""
    root = _cache_directory() / "packages"
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix="unfinished-") as scratch:
            _unpack_packages(Path(scratch), Path(scratch) / "packages")
            (Path(scratch) / "packages").rename(root)
    return GuestPackages(root)


def _only(root: Path, pattern: str) -> Path:
    for path in root.glob(pattern):
        return path
    hint = f"see whether Debian has moved it to another package; remove {root}"
    raise LabError(f"the guest's packages in {root} have no {pattern}", hint)


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "virt-rbd-backup-lab"


def _unpack_packages(scratch: Path, root: Path) -> None:
    run_program("apt-get", "--quiet", "update", timeout=300)
    # apt's own user may not write to the cache of root.
    download = ("apt-get", "--quiet", "--option", "APT::Sandbox::User=root", "download")
    run_program(*download, *_kernel_packages(), *PROGRAM_PACKAGES, directory=scratch, timeout=600)
    root.mkdir()
    for package in scratch.glob("*.deb"):
        run_program("dpkg-deb", "--extract", package, root, timeout=300)


def _kernel_packages() -> list[str]:
    """The packages behind the meta package that have the kernel and its modules."""
    output = run_program("apt-cache", "depends", "--recurse", "--important", KERNEL_META_PACKAGE).decode()
    names = [line for line in output.splitlines() if line.startswith(KERNEL_PARTS)]
    if len(names) < 2:
        raise LabError(f"apt knows no kernel behind {KERNEL_META_PACKAGE}", "run apt-get update")
    return names
