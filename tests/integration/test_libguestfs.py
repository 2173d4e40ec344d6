"""File systems that only libguestfs can read, with the real one; needs no lab, but its kernel.

Its virtual machine takes half a minute to two without KVM. Not in tests/packages.txt for that reason:
apt-get install --no-install-recommends guestfish libguestfs-xfs
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backup.files.guestfish import OtherSystems, other_systems
from tests.lab.guest_packages import guest_packages
from tests.unit.files.guest_images import snapshot
from tests.unit.mount.mounted_node import save
from tests.unit.program_node import MAIN, PYTHON, Node

PROGRAMS = ("guestfish", "mkfs.xfs", "mkfs.btrfs", "mkntfs", "cryptsetup", "depmod")
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
MODULES = Path("/lib/modules")  # supermin copies its mode
KEY = "open sesame"
LIMIT = 300  # seconds for a virtual machine under load

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

PLAIN = """run
part-init /dev/sda gpt
part-add /dev/sda p 2048 718847
part-add /dev/sda p 718848 1026047
part-add /dev/sda p 1026048 1230847
part-add /dev/sda p 1230848 1435647
mkfs xfs /dev/sda1
mount /dev/sda1 /
write "/gr\\xc3\\xb6\\xc3\\x9fe\\x0a" xfs
umount-all
mkfs btrfs /dev/sda2
mount /dev/sda2 /
btrfs-subvolume-create /sub
write /sub/file btrfs
umount-all
mkfs ntfs /dev/sda3
mount /dev/sda3 /
write /file ntfs
umount-all
pvcreate /dev/sda4
vgcreate vg /dev/sda4
lvcreate lv vg 40
mkfs ext4 /dev/vg/lv
mount /dev/vg/lv /
write /file lvm
umount-all
"""
ENCRYPTED = f"""luks-format /dev/sdb 0
{KEY}
cryptsetup-open /dev/sdb outer
{KEY}
pvcreate /dev/mapper/outer
vgcreate secret /dev/mapper/outer
lvcreate home secret 30
mkfs ext4 /dev/secret/home
mount /dev/secret/home /
write /within luks
umount-all
"""
FOUND = {
    "vda1": ("/größe\n", b"xfs"),
    "vda2": ("/sub/file", b"btrfs"),
    "vda2/sub": ("/file", b"btrfs"),
    "vda3": ("/file", b"ntfs"),
    "vg/lv": ("/file", b"lvm"),
    "secret/home": ("/within", b"luks"),
}


@pytest.fixture(scope="module", autouse=True)
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have libguestfs take the kernel of the lab's guests, and leave nothing on the machine."""
    packages, root = guest_packages(), tmp_path_factory.mktemp("kernel")
    shutil.copytree(packages.root / "lib", root / "lib", symlinks=True)
    modules = root / packages.modules.relative_to(packages.root)
    subprocess.run(["depmod", "--basedir", root, modules.name], check=True, env={"PATH": PATH})
    made = not MODULES.exists()
    MODULES.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SUPERMIN_KERNEL", str(packages.kernel))
        environment.setenv("SUPERMIN_MODULES", str(modules))
        environment.setenv("LIBGUESTFS_CACHEDIR", str(root))
        environment.setenv("LIBGUESTFS_BACKEND", "direct")
        environment.setenv("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
        yield
    with suppress(OSError):
        if made:
            MODULES.rmdir()


@pytest.fixture(scope="module")
def disks(kernel: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A guest's disks: partitions with XFS, btrfs, NTFS and LVM, and LVM on LUKS."""
    directory = tmp_path_factory.mktemp("disks")
    disks = {"vda": directory / "vda", "vdb": directory / "vdb"}
    for path, size in zip(disks.values(), (720, 80)):
        path.touch()
        os.truncate(path, size << 20)
    command = ["guestfish", "--rw", "--format=raw", "--keys-from-stdin"]
    command += [f"--add={path}" for path in disks.values()]
    subprocess.run(command, input=PLAIN + ENCRYPTED, text=True, check=True, stdout=subprocess.DEVNULL)
    return disks


def read(systems: OtherSystems, name: str, path: str) -> bytes:
    with systems.opened(name) as files:
        return b"".join(files.content(files.find(path.encode())))


def test_xfs_btrfs_ntfs_lvm_and_luks_are_read(disks: dict[str, Path]) -> None:
    with other_systems(disks, lambda: None, KEY) as systems:
        assert {*systems.names} == {*FOUND}
        for name, (path, content) in FOUND.items():
            assert read(systems, name, path) == content


def files(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}
    command = [PYTHON, str(MAIN), "files", "web", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def test_a_file_comes_out_of_lvm_on_luks_with_its_key_and_not_without(
    disks: dict[str, Path], tmp_path: Path
) -> None:
    node = Node(tmp_path)
    save(node, "restic", {"vdb": snapshot(disks["vdb"])})
    node.configure()
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "to").mkdir()
    without = files(node, "/within")
    assert "hint: vdb: encrypted, read with --key FILE" in without.stderr
    done = files(node, "/within", "--key", f"{tmp_path}/key", "--to", f"{tmp_path}/to")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "to/within").read_text() == "luks"
    (tmp_path / "key").write_text("wrong")
    done = files(node, "/within", "--key", f"{tmp_path}/key")
    assert done.returncode == 1
    assert "error: the key does not open vdb: guestfish failed: luks_open_ro: cryptsetup" in done.stderr
