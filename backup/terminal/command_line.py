"""The command line's words: commands, options, and what their help says.

The manual page and the shells' completions are made from `parser` too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Protocol

from .. import PROGRAM, __version__
from ..exit_codes import MEANINGS
from ..model import Level
from .parser import Parser, examples_text

DESCRIPTION = "Back up libvirt domains whose disks are Ceph RBD images, into restic."
EPILOG = "Without a command: backup\n\n{codes}\n{examples}"
EXAMPLES = {
    f"{PROGRAM} check": "before the first backup: can it work?",
    PROGRAM: "back up all selected domains",
    f"{PROGRAM} backup web01": "back up one of them",
    f"{PROGRAM} restore web01 --define --start": "have a lost domain again",
}


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Read the words; `command` is the command's name. Wrong ones end the program with exit code 2."""
    whole, commands = _parsers()
    arguments, unknown = whole.parse_known_args(_with_suffix(words))
    if unknown:
        commands[arguments.command].refuse(unknown[0])
    return arguments


def parser() -> argparse.ArgumentParser:
    """Give the parser of all commands, for what describes them elsewhere."""
    return _parsers()[0]


def _with_suffix(words: Sequence[str]) -> Sequence[str]:
    """Join --suffix and its value, which argparse would take for an option if it begins with a dash."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--suffix":
            joined[-1] = f"--suffix={word}"
        else:
            joined.append(word)
    return joined


class _Add(Protocol):
    """Adds a command: its name, what it does, and by examples of the words after its name what these do."""

    def __call__(self, name: str, does: str, examples: Mapping[str, str]) -> Parser: ...


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """Give the parser of the whole, and those of its commands by their names."""
    whole = Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG.format(codes=_exit_codes_text(), examples=examples_text(EXAMPLES)),
        parents=[_common_options()],
    )
    whole.add_argument("--version", action="version", version=f"virt-rbd-backup {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", title="Commands", parser_class=Parser)
    whole.set_defaults(
        config=None,
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
            parents=[_common_options()],
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=examples_text(
                {f"{PROGRAM} {name} {words}".rstrip(): done for words, done in examples.items()}
            ),
        )

    for add_command in (
        _backup,
        _list,
        _restore_points,
        _restore,
        _verify,
        _drill,
        _check,
        _report,
        _cleanup,
    ):
        add_command(add)
    return whole, dict(commands.choices)


def _exit_codes_text() -> str:
    return "Exit codes:\n" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in MEANINGS.items())


def _backup(add: _Add) -> None:
    command = add(
        "backup",
        "back up domains (the default)",
        {
            "": "all that are selected",
            "web01 'db*'": "these alone",
            "--dry-run": "see first what would be backed up",
            "--verify web01": "and hold each image against its snapshot at once",
        },
    )
    _domains(command)
    command.add_argument("--dry-run", action="store_true", help="only show what would be backed up")
    command.add_argument(
        "--verify", action="store_true", help="hold each image against its snapshot when it is saved"
    )


def _list(add: _Add) -> None:
    _json(
        add(
            "list",
            "show what is backed up, and why the rest is not",
            {"": "as a table", "--json": "for programs"},
        )
    )


def _restore_points(add: _Add) -> None:
    command = add("restore-points", "show what could be restored", {"": "of all domains", "web01": "of one"})
    _domains(command)
    _json(command)


def _restore(add: _Add) -> None:
    command = add(
        "restore",
        "bring a domain's images back, and the domain with them",
        {
            "web01 --define --start": "a domain that was lost, as it was, and started",
            "web01 --to-pool scratch --define --name web01-copy --new-uuid": "a copy beside the running one",
            "web01 --at 2026-11-23 --disk vdb --to-file /tmp/vdb.qcow2": "one disk of that day, as a file",
        },
    )
    command.add_argument("domain", metavar="DOMAIN", help="name or UUID; it need not exist any more")
    _at(
        command,
        "a run's id, or the newest of up to a time in UTC, such as 2026-11-25T03:00; default: latest",
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


def _verify(add: _Add) -> None:
    command = add(
        "verify",
        "read restore points back, and hold them against what was saved",
        {
            "": "the newest of each domain",
            "--sample 5%": "a little of it every day",
            "web01 --at 2026-11-23": "of one domain, the newest of that day or before",
        },
    )
    _domains(command)
    _at(command, "as for restore; default: latest")
    command.add_argument(
        "--sample",
        metavar="PERCENT",
        type=_part,
        default=1.0,
        help="read whole images, drawn by chance, that come to this part of all bytes, such as 5%%",
    )


def _drill(add: _Add) -> None:
    command = add(
        "drill",
        "restore a domain into DRILL_POOL, verify it, and remove it again",
        {"--boot": "the domain whose turn it is", "web01 --boot": "this one"},
    )
    command.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        default="",
        help="name or UUID; default: the one whose last drill is longest ago",
    )
    command.add_argument("--boot", action="store_true", help="boot it too, without a network")


def _check(add: _Add) -> None:
    add(
        "check",
        "look whether backups can work, and what to mend",
        {"": "with these settings", "--config new.py": "with others, before they are put in place"},
    )


def _report(add: _Add) -> None:
    command = add(
        "report",
        "show what a past run came to, as text or as a page",
        {
            "": "the last run, as text",
            "--html /srv/www/backup.html": "as a page, with the last 30 days",
            "--run 20261125T020003Z-abcd --json": "another run, for programs",
        },
    )
    command.add_argument("--run", metavar="RUN", default="", help="a run's id; default: the newest")
    form = command.add_mutually_exclusive_group()
    _json(form)
    form.add_argument(
        "--html",
        metavar="FILE",
        help="write a page that holds the last 30 days too; -: to standard output",
    )


def _cleanup(add: _Add) -> None:
    command = add(
        "cleanup",
        "let guests go and remove snapshots that killed runs left",
        {"": "after a run that was killed", "--all": "before restic_incremental is given up"},
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="those too that restic_incremental keeps: its next backups then read everything",
    )


def _domains(command: Parser) -> None:
    command.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="name, UUID or glob pattern; default: all"
    )


def _json(command: argparse._ActionsContainer) -> None:
    command.add_argument("--json", action="store_true", help="for programs")


def _at(command: Parser, text: str) -> None:
    command.add_argument("--at", metavar="latest|RUN|TIME", default="latest", help=text)


def _common_options() -> Parser:
    """Give the options that may stand before and after the command, without defaults of their own."""
    parent = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common = parent.add_argument_group("Common options")
    common.add_argument(
        "--config", metavar="FILE", help="Python file whose constants override those of config.py"
    )
    common.add_argument(
        "--log-level",
        metavar="LEVEL",
        choices=[level.name.lower() for level in Level],
        help="error, warning, info or debug; default: info",
    )
    common.add_argument(
        "--progress",
        metavar="WHEN",
        choices=("auto", "always", "never"),
        help="auto, always or never; default: auto, on a terminal and in the journal",
    )
    return parent


def _part(text: str) -> float:
    """Read a percentage. Raises argparse.ArgumentTypeError."""
    try:
        part = float(text.rstrip("%")) / 100
    except ValueError:
        part = 0
    if not 0 < part <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage: more than 0 %, up to 100 %")
    return part
