#!/usr/bin/python3
"""The command line of virt-rbd-backup: parses, wires, maps results to exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Callable, NoReturn

import config
import outputs
from backup import __version__
from backup.console import Console, finding, listing, selection_json, summary
from backup.errors import AlreadyRunning, BackupError, ConfigError, Interrupted, NotDefined
from backup.model import Level
from backup.proof import proofs
from backup.report import RunResult, write_report
from backup.settings import Settings, load
from backup.stop import StopRequest

# Modules that only distributions package, and their package in Debian.
MODULES = {
    "libvirt": "python3-libvirt",
    "rados": "python3-rados",
    "rbd": "python3-rbd",
    "xxhash": "python3-xxhash",
}

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


def main(words: Sequence[str]) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # names come in all alphabets, whatever the locale
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = _parser().parse_args(_with_suffix(words))
    console = Console(
        sys.stderr,
        level=Level[arguments.log_level.upper()],
        show_progress=arguments.progress == "always"
        or (arguments.progress == "auto" and sys.stderr.isatty()),
        in_journal=os.environ.get("JOURNAL_STREAM") == _stream_id(sys.stderr.fileno()),
    )
    try:
        override = arguments.config or os.environ.get("VIRT_RBD_BACKUP_CONFIG")
        settings = load(vars(config), Path(override) if override else None)
        _require_modules()
        return int(arguments.run(arguments, settings, console))
    except ConfigError as error:
        for one in error.errors:
            console.error(one)
        return 2
    except Interrupted as error:
        console.error(error)
        return 128 + error.signal_number
    except BackupError as error:
        console.error(error)
        return 11 if isinstance(error, AlreadyRunning) else 3 if isinstance(error, NotDefined) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _with_suffix(words: Sequence[str]) -> Sequence[str]:
    """Join --suffix and its value, which argparse would take for an option if it begins with a dash."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--suffix":
            joined[-1] = f"--suffix={word}"
        else:
            joined.append(word)
    return joined


def back_up(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Back up the selected domains, then tell how it went."""
    from backup.run import Run

    if arguments.dry_run:
        return _show(arguments.domains, False, settings, console)
    stop = StopRequest()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    run = Run(settings, outputs.chosen(settings), console, stop)
    try:
        result = run.back_up(arguments.domains, arguments.verify)
    except (AlreadyRunning, ConfigError):  # no run of its own, and nothing that a report would change
        raise
    except BackupError:
        _report(run.result((), nothing_done=True), settings, console)
        raise
    _report(result, settings, console)
    _print(summary(result))
    return result.exit_code


def _report(result: RunResult, settings: Settings, console: Console) -> None:
    if settings.report_file:
        try:
            write_report(result, settings.report_file, proofs(settings.state_dir))
        except BackupError as error:  # the domains are as they are: the exit code tells of them
            console.error(error)


def _print(text: str) -> None:
    """Print what the exit code does not depend on: a reader that has gone is no failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # what is still buffered would fail once more at exit, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_list(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Show all domains and disks, and why what is left out is."""
    return _show((), arguments.json, settings, console)


def _show(names: Sequence[str], as_json: bool, settings: Settings, console: Console) -> int:
    """Show what a backup would do; as in a backup, a libvirt that can't be asked may hide domains."""
    from backup.hypervisors import Hypervisors
    from backup.run import look

    with Hypervisors(settings.libvirt_uris, settings.libvirt_timeout) as hypervisors:
        choices = look(names, hypervisors, settings, console)
        _print(json.dumps(selection_json(choices), indent=2) + "\n" if as_json else listing(choices))
        return 3 if hypervisors.unreachable else 0


def show_points(arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Show what could be restored."""
    from backup.restore_points import of_domains, points_json, points_table

    output = outputs.chosen(settings)
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    points = of_domains(output.restore_points(), arguments.domains)
    _print(json.dumps(points_json(points), indent=2) + "\n" if arguments.json else points_table(points))
    return 0


def restore(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Bring a domain back, or some of it."""
    from backup.restore_order import RestoreOrder, Restorer
    from backup.restore_points import restored_table

    order = RestoreOrder(**{one.name: getattr(arguments, one.name) for one in fields(RestoreOrder)})
    stop = StopRequest()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    restored = Restorer(order, settings, outputs.chosen(settings), console, stop).restore()
    _print(restored_table(restored))
    return 0


def verify(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prove that restore points come back as they were saved."""
    from backup.verification import Verification

    stop = StopRequest()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    verification = Verification(settings, outputs.chosen(settings), console, stop, arguments.sample)
    failed = verification.verify(arguments.domains, arguments.at)
    _print(f"{failed} domains failed\n" if failed else "all that was read is as it was saved\n")
    return 3 if failed else 0


def drill(arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Prove that a domain comes back, by having it back for a while."""
    from backup.drill import Drill

    stop = StopRequest()
    stop.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        name = Drill(settings, outputs.chosen(settings), console, stop, arguments.boot).drill(
            arguments.domain
        )
    except (ConfigError, Interrupted):
        raise
    except BackupError as error:
        console.error(error)
        return 3
    _print(f"{name} comes back as it was saved\n")
    return 0


def check(_arguments: argparse.Namespace, settings: Settings, _console: Console) -> int:
    """Show whether a backup could work."""
    from backup.preflight import examine

    problems = 0
    for found in examine(settings, outputs.chosen(settings)):
        _print(finding(found))
        problems += found.problem is not None
    _print(f"{problems} problems\n" if problems != 1 else "1 problem\n")
    return 1 if problems else 0


def clean_up(_arguments: argparse.Namespace, settings: Settings, console: Console) -> int:
    """Thaw and remove what killed runs left."""
    from backup.cleanup import clean_node

    return 3 if clean_node(settings, console) else 0


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
    parser.set_defaults(
        config=None, log_level="info", progress="auto", run=back_up, domains=[], dry_run=False, verify=False
    )
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[..., int], text: str) -> _Parser:
        command = commands.add_parser(name, parents=[_common_options()], help=text, description=f"{text}.")
        command.set_defaults(run=run)
        return command

    backup = add("backup", back_up, "back up domains (the default)")
    backup.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="name, UUID or glob pattern; default: all"
    )
    backup.add_argument("--dry-run", action="store_true", help="only show what would be backed up")
    backup.add_argument(
        "--verify",
        action="store_true",
        help="hold each image against its snapshot when it is saved",
    )
    listed = add("list", show_list, "show what is backed up, and why the rest is not")
    listed.add_argument("--json", action="store_true", help="for programs")
    points = add("restore-points", show_points, "show what could be restored")
    points.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="name, UUID or glob pattern; default: all"
    )
    points.add_argument("--json", action="store_true", help="for programs")
    _add_restore(add("restore", restore, "bring a domain's images back, and the domain with them"))
    verified = add("verify", verify, "read restore points back, and hold them against what was saved")
    verified.add_argument(
        "domains", metavar="DOMAIN", nargs="*", help="name, UUID or glob pattern; default: all"
    )
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
    drilled = add("drill", drill, "restore a domain into DRILL_POOL, verify it, and remove it again")
    drilled.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        default="",
        help="name or UUID; default: the one whose last drill is longest ago",
    )
    drilled.add_argument("--boot", action="store_true", help="boot it too, without a network")
    add("check", check, "look whether backups can work, and what to mend")
    add("cleanup", clean_up, "let guests go and remove snapshots that killed runs left")
    return parser


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


def _stream_id(descriptor: int) -> str:
    """Give what JOURNAL_STREAM names the journal by (man 5 systemd.exec)."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


def _require_modules() -> None:
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(MODULES[name] for name in missing)
        raise BackupError(
            f"this interpreter ({sys.executable}) has no module {', '.join(missing)}",
            f"run it with the distribution's own: /usr/bin/python3 main.py; apt-get install {packages}",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
