"""The command and the unit of this process as an admin types them: with its group, if it has one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from . import PROGRAM
from .groups import is_name

GROUP_VARIABLE = "VIRT_RBD_BACKUP_GROUP"


def group_of(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the group that a command line names, or else the environment; "" for none.

    For hints in any process of a run, which all have the same arguments: main parses and checks them.
    """
    group = ""
    for argument, after in zip(arguments, (*arguments[1:], "")):
        option, joined, value = argument.partition("=")
        if _abbreviates(option, "--config"):
            return ""
        if _abbreviates(option, "--group"):
            group = value if joined else after
    group = group or environment.get(GROUP_VARIABLE, "")
    return group if is_name(group) else ""


def config_of(arguments: Sequence[str]) -> str | None:
    """Return the file that a command line names with --config, None for none; the rest of it may be wrong."""
    config = None
    for argument, after in zip(arguments, (*arguments[1:], "")):
        option, joined, value = argument.partition("=")
        if _abbreviates(option, "--config"):
            config = value if joined else after
    return config


def _abbreviates(option: str, name: str) -> bool:
    """Return whether main's parser takes it for the option of this name."""
    return len(option) > len("--") and name.startswith(option)


GROUP = group_of(sys.argv[1:], os.environ)
COMMAND = f"{PROGRAM} --group {GROUP}" if GROUP else PROGRAM
UNIT = f"virt-rbd-backup@{GROUP}" if GROUP else "virt-rbd-backup"
