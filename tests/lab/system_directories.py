"""Sets the machine's own libvirt directories aside and puts exactly them back.

qemu:///system has fixed directories. Renaming keeps what the machine has there untouched,
owners and times included, and is undone by renaming back.
"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.programs import run_program

LIBVIRT_DIRECTORIES = (
    Path("/etc/libvirt"),
    Path("/run/libvirt"),
    Path("/var/lib/libvirt"),
    Path("/var/log/libvirt"),
    Path("/var/cache/libvirt"),
)


# Beside what it tells of, so that the directories come back even if the lab's own directory is lost.
RECORD = Path("/var/lib/libvirt-directories-set-aside-by-lab.json")


@dataclass(frozen=True)
class SystemDirectories:
    """The libvirt directories of the machine, for the lab in this directory."""

    lab: Path

    @staticmethod
    def taken_by() -> Path | None:
        """The directory of the lab that has set them aside, be it up or long dead."""
        return Path(json.loads(RECORD.read_text())["lab"]) if RECORD.exists() else None

    def set_aside(self) -> None:
        for directory in LIBVIRT_DIRECTORIES:
            if _aside(directory).exists():
                hint = "no lab knows of it: move it back by hand"
                raise LabError(f"{_aside(directory)} exists", hint)
        present = [str(directory) for directory in LIBVIRT_DIRECTORIES if directory.exists()]
        draft = RECORD.with_suffix(".draft")
        draft.write_text(json.dumps({"lab": str(self.lab), "present": present}))
        draft.rename(RECORD)
        for directory in LIBVIRT_DIRECTORIES:
            if directory.exists():
                _move(directory, _aside(directory))
            directory.mkdir(parents=True, mode=0o755)

    def restore(self) -> None:
        """Idempotent, also after a set_aside() that was killed in between."""
        if self.taken_by() != self.lab:
            return
        present = json.loads(RECORD.read_text())["present"]
        for directory in LIBVIRT_DIRECTORIES:
            remove_tree(_unfinished(_aside(directory)))
            if _aside(directory).exists():
                remove_tree(directory)
                _move(_aside(directory), directory)
            elif str(directory) not in present:
                remove_tree(directory)
        RECORD.unlink()


def remove_tree(directory: Path) -> None:
    """Remove a directory, but never what is mounted in it."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount_point = Path(line.split(" ")[1])
        if directory in (mount_point, *mount_point.parents):
            raise LabError(f"{mount_point} is still mounted", f"umount {mount_point}, then try again")
    if directory.exists():
        shutil.rmtree(directory)


def _aside(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.set-aside-by-lab")


def _move(source: Path, destination: Path) -> None:
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            hint = "the lab needs these directories to be no mount points"
            raise LabError(f"cannot rename {source} to {destination}: {error.strerror}", hint) from error
        _move_by_copy(source, destination)


def _move_by_copy(source: Path, destination: Path) -> None:
    """For a container: what comes from its image's layers cannot be renamed."""
    copy = _unfinished(destination)
    remove_tree(copy)
    run_program("cp", "--archive", source, copy, timeout=600)
    copy.rename(destination)
    remove_tree(source)


def _unfinished(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.unfinished")
