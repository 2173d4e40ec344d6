"""Parses the command line. The manual pages and the shells' completions are made from `parser` too."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import PROGRAM, __version__
from ..exit_codes import MEANINGS
from .commands import COMMANDS
from .options import common_options
from .parser import Parser, examples_text

DESCRIPTION = "Back up libvirt domains whose disks are Ceph RBD images, into restic or into a second pool."
EPILOG = "Without a command: backup.\n\n{codes}\n{examples}\nManual: {manual}"
MANUAL = Path(__file__).resolve().parents[2] / "res/docs"
EMPTY_OPTION = re.compile("--[a-z-]+=")
EXAMPLES = {
    f"{PROGRAM} check": "before the first backup: check that backups can run",
    PROGRAM: "back up all selected domains",
    f"{PROGRAM} backup web01": "back up one domain",
    f"{PROGRAM} restore web01 --define --start": "restore a lost domain and start it",
}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; `command` is the command's name. Wrong ones end the program with exit code 2."""
    whole, commands = _parsers()
    _require_values(whole, argv)
    arguments, unknown = whole.parse_known_args(_with_suffix(argv))
    if unknown:
        commands[arguments.command].refuse(unknown[0])
    if arguments.config and arguments.group:
        whole.error("argument --group: not allowed with argument --config")
    return arguments


def _require_values(whole: Parser, argv: Sequence[str]) -> None:
    """End with an error if an argument is empty: without it the command would do something else."""
    for before, argument in zip(("", *argv), argv):
        if not argument or EMPTY_OPTION.fullmatch(argument):
            name = argument[:-1] or (before if before.startswith("--") else "")
            whole.refuse_empty(name)


def parser() -> argparse.ArgumentParser:
    """Give the parser of all commands, for what describes them elsewhere."""
    return _parsers()[0]


def _with_suffix(argv: Sequence[str]) -> Sequence[str]:
    """Join --suffix and its value, which argparse would take for an option if it begins with a dash."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--suffix":
            joined[-1] = f"--suffix={argument}"
        else:
            joined.append(argument)
    return joined


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """Give the parser of the whole command line, and those of the commands by their names."""
    whole = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG.format(
            codes=_exit_codes_text(), examples=examples_text(EXAMPLES) + "\n", manual=MANUAL
        ),
        parents=[common_options()],
    )
    whole.add_argument(
        "--version",
        action="version",
        version=f"virt-rbd-backup {__version__}",
        help="show the version and exit",
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", title="Commands", parser_class=Parser)
    whole.set_defaults(
        config=None,
        group=None,
        log_level="info",
        progress="auto",
        command="backup",
        domains=[],
        dry_run=False,
        verify=False,
    )

    def add(name: str, does: str, examples: Mapping[str, str]) -> Parser:
        return commands.add_parser(
            name,
            parents=[common_options()],
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=examples_text(
                {f"{PROGRAM} {name} {arguments}".rstrip(): result for arguments, result in examples.items()}
            ),
        )

    for declare in COMMANDS:
        declare(add)
    return whole, dict(commands.choices)


def _exit_codes_text() -> str:
    return "Exit codes:\n" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in MEANINGS.items())
