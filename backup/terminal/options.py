"""Options and arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta

from ..groups import NAME_RULE, is_name
from ..model import Level
from .parser import Parser

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def common_options() -> Parser:
    """Give the options that may stand before and after the command, without defaults of their own."""
    parent = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common = parent.add_argument_group("Common options")
    common.add_argument(
        "--config", metavar="FILE", help="Python file whose constants override those of config.py"
    )
    group = common.add_argument(
        "--group",
        metavar="NAME",
        type=group_name,
        help="group of domains: the settings are of NAME.py, beside the default settings file, instead",
    )
    completed(group, "groups")
    common.add_argument(
        "--log-level",
        metavar="LEVEL",
        choices=[level.name.lower() for level in Level],
        help="least severe messages to log: error, warning, info or debug; default: info",
    )
    common.add_argument(
        "--progress",
        metavar="WHEN",
        choices=("auto", "always", "never"),
        help="show progress: auto (on a terminal and in the journal), always or never; default: auto",
    )
    return parent


def completed(argument: argparse.Action, kind: str) -> None:
    """Have shells complete the argument with a kind of completion.py: shtab reads this attribute."""
    functions = {"bash": f"_virt_rbd_backup_{kind}", "zsh": f"{{_virt_rbd_backup_values {kind}}}"}
    argument.complete = functions  # type: ignore[attr-defined]


def add_domains(command: Parser, kind: str, default: str = "all") -> None:
    help_text = f"name, UUID or glob pattern; default: {default}"
    completed(command.add_argument("domains", metavar="DOMAIN", nargs="*", help=help_text), kind)


def add_saved_domain(command: Parser) -> None:
    help_text = "name or UUID; the domain need not exist any more"
    completed(command.add_argument("domain", metavar="DOMAIN", help=help_text), "saved")


def add_json(command: argparse._ActionsContainer) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_at(command: Parser) -> None:
    at = command.add_argument(
        "--at",
        metavar="latest|RUN|TIME",
        default="latest",
        help="use the restore point of this run, or the newest up to this UTC time,"
        " such as 2026-11-25T03:00; default: latest",
    )
    completed(at, "points")


def add_source(command: Parser) -> None:
    command.add_argument(
        "--from",
        dest="source",
        choices=("copy",),
        default="",
        help="read the copy in COPY_REPOSITORY instead of the repository",
    )


def group_name(text: str) -> str:
    """Check the name of a group. Raises argparse.ArgumentTypeError."""
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"invalid group name {text!r}: expected {NAME_RULE}")
    return text


def percentage(text: str) -> float:
    """Parse a percentage. Raises argparse.ArgumentTypeError."""
    try:
        part = float(text.rstrip("%")) / 100
    except ValueError:
        part = 0
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"invalid percentage {text!r}: expected more than 0 and at most 100")
    return part


def age(text: str) -> timedelta:
    """Parse an age such as 26h, 90m or 2d. Raises argparse.ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([mhd])", text)
    try:
        limit = timedelta(**{UNITS[found[2]]: float(found[1])}) if found else timedelta()
    except OverflowError:  # millions of years
        limit = timedelta()
    if not limit:
        raise argparse.ArgumentTypeError(
            f"invalid age {text!r}: expected a number and m, h or d, such as 26h"
        )
    return limit
