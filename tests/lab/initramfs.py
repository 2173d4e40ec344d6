"""Builds the guest's whole system: an initramfs of BusyBox, the guest agent and mkfs.ext4."""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.guest_packages import GuestPackages
from tests.lab.programs import run_program

INIT_SCRIPT = Path(__file__).with_name("guest_init.sh")
WANTED_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4", "loop", "raid0")
MAKE_FILESYSTEM = Path("/sbin/mkfs.ext4")


def build_initramfs(packages: GuestPackages, destination: Path) -> None:
    modules = _modules_in_order(packages.modules)
    files = {
        "init": INIT_SCRIPT.read_bytes(),
        "bin/busybox": packages.busybox.read_bytes(),
        "bin/qemu-ga": packages.agent.read_bytes(),
        "bin/mkfs.ext4": MAKE_FILESYSTEM.read_bytes(),
        "modules/order": "".join(f"{name}.ko\n" for name in modules).encode(),
    }
    files.update((f"modules/{name}.ko", content) for name, content in modules.items())
    for library in {*_libraries(packages.agent), *_libraries(MAKE_FILESYSTEM)}:
        files[str(library).lstrip("/")] = library.read_bytes()
    destination.write_bytes(b"".join(_archive(files)))


def _modules_in_order(directory: Path) -> dict[str, bytes]:
    """The wanted modules and what they need, each after its needs; built-in ones left out."""
    builtin = {_module_name(line) for line in (directory / "modules.builtin").read_text().split()}
    paths = {_module_name(path.name): path for path in directory.glob("kernel/**/*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name not in paths:
            raise LabError(f"the guest's kernel in {directory} has no module {name}")
        content = _module_content(paths[name])
        for needed in _module_needs(content):
            load(needed)
        loaded[name] = content

    for wanted in WANTED_MODULES:
        load(wanted)
    return loaded


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _module_needs(content: bytes) -> list[str]:
    """What the module itself names in its .modinfo section; modules.dep is made by installing only."""
    found = re.search(rb"\0depends=([^\0]+)\0", content)
    return [name.replace("-", "_") for name in found[1].decode().split(",")] if found else []


def _libraries(program: Path) -> list[Path]:
    """The libraries of the host that a program needs, at the paths where its loader looks."""
    output = run_program("ldd", program).decode()
    missing = re.findall(r"(\S+) => not found", output)
    if missing:
        hint = "install the packages that tests/lab/packages.txt lists"
        raise LabError(f"{program} needs {', '.join(missing)}", hint)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", output)]


def _archive(files: dict[str, bytes]) -> Iterator[bytes]:
    """The files as a cpio archive, the format of an initramfs."""
    directories = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for directory in sorted(directories):
        yield _archive_entry(directory, stat.S_IFDIR | 0o755, b"")
    for name, content in files.items():
        yield _archive_entry(name, stat.S_IFREG | 0o755, content)
    yield _archive_entry("TRAILER!!!", 0, b"")


def _archive_entry(name: str, mode: int, content: bytes) -> bytes:
    encoded_name = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (4 fields), length of the name, checksum
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded_name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded_name) + _padded(content)


def _padded(block: bytes) -> bytes:
    return block + bytes(-len(block) % 4)
