"""The command line's words: commands, options, and what their help says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .model import Level

EXIT_CODES = """\
exit codes:
  0    every selected domain is saved, or there was nothing to do
  1    nothing could be done
  2    usage or configuration error
  3    at least one domain failed
  11   another run is active on this node
  129, 130, 143   interrupted"""

RESTORE_EXAMPLES = """\
A domain that was lost, as it was, and started:
  main.py restore web01 --define --start
As a copy beside the running one, in another pool:
  main.py restore web01 --to-pool scratch --define --name web01-copy --new-uuid
One disk of the day before yesterday, into a file:
  main.py restore web01 --at 2026-11-23 --disk vdb --to-file /tmp/vdb.qcow2"""


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Read the words; `command` is the command's name. Wrong ones end the program with exit code 2."""
    return _parser().parse_args(_with_suffix(words))


def _with_suffix(words: Sequence[str]) -> Sequence[str]:
    """Join --suffix and its value, which argparse would take for an option if it begins with a dash."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--suffix":
            joined[-1] = f"--suffix={word}"
        else:
            joined.append(word)
    return joined


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(
            2,
            f"error: {message}\nhint: see `{self.prog} --help`; to back up one domain: main.py backup NAME\n",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py",
        description="Back up libvirt domains whose disks are Ceph RBD images, into restic.",
        epilog=f"without a command: backup\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_options()],
    )
    parser.add_argument("--version", action="version", version=f"virt-rbd-backup {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    parser.set_defaults(
        config=None,
        log_level="info",
        progress="auto",
        command="backup",
        domains=[],
        dry_run=False,
        verify=False,
    )

    def add(name: str, text: str) -> _Parser:
        return commands.add_parser(name, parents=[_common_options()], help=text, description=f"{text}.")

    backup = add("backup", "back up domains (the default)")
    _add_domains(backup)
    backup.add_argument("--dry-run", action="store_true", help="only show what would be backed up")
    backup.add_argument(
        "--verify",
        action="store_true",
        help="hold each image against its snapshot when it is saved",
    )
    listed = add("list", "show what is backed up, and why the rest is not")
    listed.add_argument("--json", action="store_true", help="for programs")
    points = add("restore-points", "show what could be restored")
    _add_domains(points)
    points.add_argument("--json", action="store_true", help="for programs")
    _add_restore(add("restore", "bring a domain's images back, and the domain with them"))
    verified = add("verify", "read restore points back, and hold them against what was saved")
    _add_domains(verified)
    verified.add_argument(
        "--at", metavar="latest|RUN|TIME", default="latest", help="as for restore; default: latest"
    )
    verified.add_argument(
        "--sample",
        metavar="PERCENT",
        type=_part,
        default=1.0,
        help="read whole images, drawn by chance, that come to this part of all bytes, such as 5%%",
    )
    drilled = add("drill", "restore a domain into DRILL_POOL, verify it, and remove it again")
    drilled.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        default="",
        help="name or UUID; default: the one whose last drill is longest ago",
    )
    drilled.add_argument("--boot", action="store_true", help="boot it too, without a network")
    add("check", "look whether backups can work, and what to mend")
    cleaned = add("cleanup", "let guests go and remove snapshots that killed runs left")
    cleaned.add_argument(
        "--all",
        action="store_true",
        help="those too that restic_incremental keeps: its next backups then read everything",
    )
    return parser


def _add_domains(command: _Parser) -> None:
    command.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="name, UUID or glob pattern; default: all"
    )


def _add_restore(command: _Parser) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = RESTORE_EXAMPLES
    command.add_argument("domain", metavar="DOMAIN", help="name or UUID; it need not exist any more")
    command.add_argument(
        "--at",
        metavar="latest|RUN|TIME",
        default="latest",
        help="a run's id, or the newest of up to a time in UTC, such as 2026-11-25T03:00; default: latest",
    )
    command.add_argument(
        "--disk",
        dest="disks",
        metavar="TARGET",
        action="append",
        default=[],
        help="such as vda; default: all",
    )
    command.add_argument("--to-pool", metavar="POOL[/NAMESPACE]", default="", help="default: where they were")
    command.add_argument("--suffix", default="", help="ending for the images' names")
    command.add_argument("--to-image", metavar="POOL/[NAMESPACE/]IMAGE", default="", help="for one disk")
    command.add_argument(
        "--to-file",
        metavar="PATH",
        default="",
        help="for one disk: raw and sparse, or qcow2 if it ends in .qcow2",
    )
    command.add_argument(
        "--define", action="store_true", help="define the domain in libvirt, on these images"
    )
    command.add_argument("--name", metavar="NEW", default="", help="define it under another name, as a copy")
    command.add_argument("--new-uuid", action="store_true", help="define it with another UUID, as a copy")
    command.add_argument("--start", action="store_true", help="start the domain once it is defined")
    command.add_argument(
        "--force",
        action="store_true",
        help="replace images, files and a domain that are there, but none that is in use",
    )


def _common_options() -> _Parser:
    """Give the options that may stand before and after the command, without defaults of their own."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--config", metavar="FILE", help="Python file whose constants override those of config.py"
    )
    common.add_argument("--log-level", choices=[level.name.lower() for level in Level], help="default: info")
    common.add_argument(
        "--progress", choices=("auto", "always", "never"), help="default: auto, on a terminal"
    )
    return common


def _part(text: str) -> float:
    """Read a percentage. Raises argparse.ArgumentTypeError."""
    try:
        part = float(text.rstrip("%")) / 100
    except ValueError:
        part = 0
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage: more than 0 %, up to 100 %")
    return part
