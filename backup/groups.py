"""Groups of domains: their names, their settings files, and the directories of each."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import BackupError, ConfigError

DIRECTORY = "groups"  # in RUNTIME_DIR and STATE_DIR
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
RESERVED = "config"
NO_GROUP_HINT = "the settings of a group are a file of mode 0600 that sets a constant itself: NAME = value"
NAME_RULE = f"letters, digits, _ and -, not {RESERVED}"


def is_name(text: str) -> bool:
    """Return whether a group can have this name: it becomes a part of paths and of units' names."""
    return NAME.fullmatch(text) is not None and text != RESERVED


def directory_of(parent: str, group: str) -> str:
    """Return a group's own directory in RUNTIME_DIR or STATE_DIR, which itself belongs to no group ("")."""
    return f"{parent}/{DIRECTORY}/{group}" if group else parent


def directories(parent: str) -> Mapping[str, str]:
    """Return the directories that exist there, by their groups; "" is the parent itself, for no group.

    Raises OSError if they cannot be listed, such as when this process is out of files.
    """
    found = {"": parent}
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(Path(parent, DIRECTORY))):
            if is_name(name):
                found[name] = directory_of(parent, name)
    return found


def with_name(path: str, group: str) -> str:
    """Return the path of a file with the group's name before its suffix."""
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{group}{whole.suffix}"))


@dataclass(frozen=True)
class GroupFiles:
    """The settings files of groups: GROUP.py beside the default one. `constants` are all settings' names."""

    default: Path
    constants: Collection[str]

    def path(self, group: str) -> Path:
        return self.default.with_name(f"{group}.py")

    def names(self) -> Sequence[str]:
        """List the groups that exist. No file is executed for it: a program may lie beside the settings."""
        return sorted(
            path.stem
            for path in self.default.parent.glob("*.py")
            if is_name(path.stem) and path.name != self.default.name and not self._no_group(path)
        )

    def require(self, group: str) -> Path:
        """Return the group's file. Raises ConfigError if there is none, or `names` does not list it."""
        if not is_name(group) or f"{group}.py" == self.default.name:
            error = BackupError(f"invalid group name {group!r}", f"a group's name has {NAME_RULE}")
            raise ConfigError([error])
        path = self.path(group)
        try:
            path.stat()
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            error = BackupError(f"there is no group {group}: {path} is missing", f"groups: {known}")
            raise ConfigError([error]) from None
        except OSError:
            pass  # loading it reports the reason
        if why := self._no_group(path):  # else it would back up, and no status would ever show that it fails
            raise ConfigError([BackupError(f"there is no group {group}: {path} {why}", NO_GROUP_HINT)])
        return path

    def _no_group(self, path: Path) -> str:
        """Return why the file is no group's settings, "" if it is: it sets a constant, and is no program."""
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                return "is no file"
            if mode & 0o111:
                return "is executable"
            text = path.read_text(errors="replace")
        except OSError:
            return ""  # loading it reports the reason
        assigned = re.findall(r"^([A-Z_]+)\s*(?::[^=\n]*)?=[^=]", text, re.MULTILINE)
        return "sets no constant" if {*assigned}.isdisjoint(self.constants) else ""
