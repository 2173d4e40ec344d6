"""The settings of a command: of the default file, of another one (--config), or of a group (--group)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from .. import PROGRAM
from ..command import GROUP_VARIABLE
from ..errors import BackupError, ConfigError
from ..groups import GroupFiles
from ..settings import Settings, constants, load, load_valid

CONFIG_VARIABLE = "VIRT_RBD_BACKUP_CONFIG"
# The settings of the command that an installation brings.
INSTALLED = Path("/etc/virt-rbd-backup/config.py")
# Commands that show all groups, or thaw their guests, where none is named.
FOR_ALL = ("status", "report", "check", "cleanup")


@dataclass(frozen=True)
class SettingsFiles:
    """Which files there are, and which one was chosen; `defaults` are the constants of config.py.

    `default` is the file without a group, None for none; `given` that of --config.
    """

    defaults: Mapping[str, object]
    default: Path | None = None
    given: Path | None = None
    group: str = ""

    @classmethod
    def chosen(
        cls, arguments: argparse.Namespace, environment: Mapping[str, str], defaults: Mapping[str, object]
    ) -> SettingsFiles:
        """Choose by the command line, which has priority, and the environment."""
        group = arguments.group or ("" if arguments.config else environment.get(GROUP_VARIABLE, ""))
        default = Path(environment.get(CONFIG_VARIABLE) or INSTALLED)
        has_default = environment.get(CONFIG_VARIABLE) or group or PROGRAM == "virt-rbd-backup"
        given = Path(arguments.config) if arguments.config else None
        return cls(defaults, default if has_default else None, given, group)

    def load(self, command: str) -> Settings:
        """Load the settings for a command. Raises ConfigError, for a group that does not exist too."""
        if self.group:
            return load(self.defaults, self._groups.require(self.group), self.group)
        if self.given or not self.default or os.path.exists(self.default) or not self._groups.names():
            return load(self.defaults, self.given or self.default)
        if command in FOR_ALL:  # a node that has only groups
            return self.without_file()
        hint = f"--group names one of the groups: {', '.join(self._groups.names())}"
        raise ConfigError([BackupError(f"{self.default} is missing", hint)])

    def without_file(self) -> Settings:
        """Return the defaults, with the RUNTIME_DIR of a group whose file can be read."""
        own = load(self.defaults, None)
        return next((replace(own, runtime_dir=one.node_dir) for one in self.others()), own)

    def load_valid(self) -> Settings:
        """Load them with the default for each invalid constant, to report that. Raises ConfigError."""
        path = self._groups.require(self.group) if self.group else self.given or self.default
        return load_valid(self.defaults, path, self.group)

    def group_names(self) -> Sequence[str]:
        """List the groups that exist."""
        return self._groups.names()

    @property
    def has_groups(self) -> bool:
        """Whether the command is for all groups, of which there are some."""
        return not (self.group or self.given) and bool(self.default and self._groups.names())

    def others(self) -> Sequence[Settings]:
        """Return the settings of the groups that were not chosen, and those without a group, if readable."""
        return self._others[0]

    def errors(self) -> Mapping[str, Sequence[BackupError]]:
        """Return why settings of other groups cannot be read, by the groups."""
        return self._others[1]

    def shown(self, own: Settings) -> Sequence[Settings]:
        """Return the settings that a command for all groups is about: its own, and those of all groups.

        Its own only with a repository: where all domains are in groups, the file without a group is as it was
        installed.
        """
        if not self.has_groups:
            return [own]
        places = {"rbd": own.rbd_output_pool, "directory": own.directory_output}
        named = places.get(own.output, own.restic_repository)
        has_repository = named or any(name.startswith("RESTIC_REPOSITORY") for name in own.restic_environment)
        return [*([own] if has_repository else []), *self.others()] or [own]

    @property
    def _groups(self) -> GroupFiles:
        return GroupFiles(self.default or INSTALLED, constants().keys())

    @cached_property
    def _others(self) -> tuple[Sequence[Settings], Mapping[str, Sequence[BackupError]]]:
        """Load each once: a command may ask again for as long as a guest is frozen."""
        if self.given or not self.default:
            return (), {}
        found: list[Settings] = []
        errors: dict[str, Sequence[BackupError]] = {}
        without = [""] if self.group and os.path.exists(self.default) else []
        for group in (*without, *self._groups.names()):
            if group != self.group:
                try:
                    path = self._groups.path(group) if group else self.default
                    found.append(load(self.defaults, path, group))
                except ConfigError as error:
                    errors[group] = error.errors
        return found, errors
