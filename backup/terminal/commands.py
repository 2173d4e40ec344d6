"""The commands: what each does, its options, and examples of its use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable, Protocol

from .options import (
    add_at,
    add_domains,
    add_json,
    add_saved_domain,
    add_source,
    age,
    completed,
    percentage,
)
from .parser import Parser


class AddCommand(Protocol):
    """Adds a command: its name, what it does, and examples: arguments after its name, and their result."""

    def __call__(self, name: str, does: str, examples: Mapping[str, str]) -> Parser: ...


def _backup(add: AddCommand) -> None:
    command = add(
        "backup",
        "back up domains (the default command)",
        {
            "": "back up all selected domains",
            "web01 'db*'": "back up these domains only",
            "--dry-run": "show what would be backed up",
            "--verify web01": "back up one domain, and compare the result with its snapshots",
        },
    )
    add_domains(command, "defined", default="all selected domains")
    command.add_argument("--dry-run", action="store_true", help="only show what would be backed up")
    command.add_argument(
        "--verify",
        action="store_true",
        help="read each saved image back and compare it with its snapshot; a difference fails the domain",
    )


def _list(add: AddCommand) -> None:
    add_json(
        add(
            "list",
            "list all domains and disks: which are backed up, and why others are not",
            {"": "show a table", "--json": "print JSON, for programs"},
        )
    )


def _status(add: AddCommand) -> None:
    command = add(
        "status",
        "show each domain with its newest restore point, from all nodes",
        {
            "": "show all domains: age, proofs, what holds space in the cluster, and what runs now",
            "--max-age 26h": "a check for Nagios or Icinga: are all domains of this node saved?",
        },
    )
    add_domains(command, "domains")
    command.add_argument(
        "--max-age",
        metavar="AGE",
        type=age,
        help="judge the domains that this node backs up, or those that are named: each needs a restore point"
        " that is not older, such as 90m, 26h or 2d; exit code 0 (OK), 2 (CRITICAL) or 3 (UNKNOWN)",
    )
    add_json(command)


def _restore_points(add: AddCommand) -> None:
    command = add(
        "restore-points",
        "list the restore points",
        {"": "list those of all domains", "web01": "list those of one domain"},
    )
    add_domains(command, "saved")
    add_source(command)
    add_json(command)


def _restore(add: AddCommand) -> None:
    command = add(
        "restore",
        "restore a domain's images, and the domain itself",
        {
            "web01 --instant": "restore a lost domain, whose guest runs within seconds, while it is restored",
            "web01 --define --start": "restore a lost domain with all its disks, and start it",
            "web01 --to-pool scratch --define --name web01-copy --new-uuid": "restore a copy of the domain",
            "web01 --at 2026-11-23 --disk vdb --to-file /tmp/vdb.qcow2": "restore one disk into a file",
            "web01 --clone --define --start": "start a lost domain within seconds, on clones",
        },
    )
    add_saved_domain(command)
    add_at(command)
    add_source(command)
    command.add_argument(
        "--disk",
        dest="disks",
        metavar="TARGET",
        action="append",
        default=[],
        help="restore this disk only, such as vda; can be repeated; default: all disks",
    )
    command.add_argument(
        "--to-pool",
        metavar="POOL[/NAMESPACE]",
        default="",
        help="restore into this pool; default: each image's original pool",
    )
    command.add_argument("--suffix", default="", help="append this to the names of the restored images")
    command.add_argument(
        "--to-image",
        metavar="POOL/[NAMESPACE/]IMAGE",
        default="",
        help="restore one disk into an image of this name",
    )
    command.add_argument(
        "--to-file",
        metavar="PATH",
        default="",
        help="restore one disk into a file: qcow2 if PATH ends in .qcow2, otherwise raw and sparse",
    )
    command.add_argument(
        "--clone",
        action="store_true",
        help="do not copy: make clones of the restore point's snapshots, which takes seconds; for OUTPUT ="
        ' "rbd". The restore point is kept while there are clones; `rbd flatten` makes one independent',
    )
    _add_definition_options(command)
    command.add_argument(
        "--force",
        action="store_true",
        help="replace existing images, files and domains, unless they are in use",
    )
    command.add_argument(
        "--damaged",
        action="store_true",
        help="restore what there is, although it differs from what was saved: without it, damage of the"
        " repository ends the restore before anything is replaced",
    )
    _add_instant_options(command)


def _add_definition_options(command: Parser) -> None:
    command.add_argument(
        "--define", action="store_true", help="define the domain in libvirt, with the restored images"
    )
    command.add_argument(
        "--name", metavar="NEW", default="", help="define it under this name instead, as a copy"
    )
    command.add_argument("--new-uuid", action="store_true", help="define it with a new UUID, as a copy")
    command.add_argument("--start", action="store_true", help="start the domain once it is defined")
    command.add_argument(
        "--no-network",
        action="store_true",
        help="define it with its network interfaces down: virsh domif-setlink sets them up",
    )


def _add_instant_options(command: Parser) -> None:
    command.add_argument(
        "--instant",
        action="store_true",
        help="define and start the domain at once, out of the repository; restore its images while it runs,"
        " and then move it to them; the same command continues what was interrupted, on any node",
    )
    command.add_argument(
        "--abort",
        action="store_true",
        help="with --instant: shut the guest off (as a power cut would) and stop; what it has written stays",
    )
    command.add_argument(
        "--discard",
        action="store_true",
        help="with --abort: drop what the guest has written, and all else that the instant restore has made",
    )


def _mount(add: AddCommand) -> None:
    command = add(
        "mount",
        "show a restore point's disks as files, read-only, until Ctrl-C",
        {
            "web01 /mnt/web01": "show the newest restore point; `fusermount3 -u /mnt/web01` ends it too",
            "web01 /mnt/web01 --at 2026-11-23": "show the newest one up to that day",
        },
    )
    add_saved_domain(command)
    command.add_argument("directory", metavar="DIR", help="an empty directory")
    add_at(command)
    add_source(command)


def _files(add: AddCommand) -> None:
    command = add(
        "files",
        "list files of a guest in a restore point, or copy them",
        {
            "web01": "list the file systems of the newest restore point",
            "web01 /etc --at 2026-11-23": "list a directory",
            "web01 /etc/nginx --to /root/web01": "copy a directory, as /root/web01/nginx",
            "web01 /srv/db --disk vdb1 --to .": "copy it from this partition",
        },
    )
    add_saved_domain(command)
    command.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        default="",
        help="a file or directory of the guest; default: list its file systems",
    )
    add_at(command)
    add_source(command)
    command.add_argument(
        "--disk",
        metavar="TARGET",
        default="",
        help="search this disk, partition or volume of LVM only: vda, vda1, GROUP/VOLUME; default: all",
    )
    command.add_argument("--to", metavar="DIR", default="", help="copy PATH into this directory")
    help_text = "a file with the passphrase of encrypted disks (LUKS), which libguestfs then reads"
    command.add_argument("--key", metavar="FILE", default="", help=help_text)
    add_json(command)


def _verify(add: AddCommand) -> None:
    command = add(
        "verify",
        "read restore points back and compare them with their checksums",
        {
            "": "verify the newest restore point of each domain",
            "--sample 5%": "verify a random part of all images, suitable for every day",
            "web01 --at 2026-11-23": "verify the newest restore point up to that day",
        },
    )
    add_domains(command, "saved")
    add_at(command)
    add_source(command)
    command.add_argument(
        "--sample",
        metavar="PERCENT",
        type=percentage,
        default=1.0,
        help="read only some images, chosen at random, that make up this share of all bytes; default: 100%%",
    )


def _drill(add: AddCommand) -> None:
    command = add(
        "drill",
        "restore a domain into DRILL_POOL, verify it, and remove it again; or boot it out of the repository",
        {
            "--boot": "drill the domain whose last drill is longest ago",
            "web01 --boot": "drill this domain",
            "web01 --instant": "boot it out of the repository, without restoring it",
        },
    )
    domain = command.add_argument(
        "domain",
        metavar="DOMAIN",
        nargs="?",
        default="",
        help="name or UUID; default: the domain whose last drill is longest ago",
    )
    completed(domain, "saved")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--boot",
        action="store_true",
        help="boot it too, without a network; if DRILL_POOL is not set, the same as --instant",
    )
    form.add_argument(
        "--instant",
        action="store_true",
        help="only boot it, without a network, out of the repository: takes seconds, writes nothing to the"
        " cluster, and compares no data",
    )


def _check(add: AddCommand) -> None:
    add(
        "check",
        "check that backups can run, and show how to fix each problem",
        {"": "check the current settings", "--config new.py": "check other settings before they are used"},
    )


def _report(add: AddCommand) -> None:
    command = add(
        "report",
        "show the result of a past run as text, JSON or HTML",
        {
            "": "show the last run",
            "--html /srv/www/backup.html": "write an HTML page about the last run and the last 30 days",
            "--run 20261125T020003Z-abcd --json": "print the report of another run as JSON",
        },
    )
    run = command.add_argument("--run", metavar="RUN", default="", help="a run's id; default: the newest run")
    completed(run, "runs")
    form = command.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument(
        "--html",
        metavar="FILE",
        help="write an HTML page, with the last 30 days, into FILE; - is standard output",
    )


def _key(add: AddCommand) -> None:
    command = add(
        "key",
        "show what restic's keys cost in each call, and add a fast one",
        {
            "": "show the repository's keys",
            "--fast": "add a key that takes 0.02 s instead of 0.5 s in each call of restic",
            "--remove-fast": "remove it again",
        },
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--fast",
        action="store_true",
        help="add a fast key with the same password: a slow one protects a password that can be guessed, so"
        " the password must have 128 random bits, as `openssl rand -base64 32` makes it; takes about 10 s",
    )
    form.add_argument("--remove-fast", action="store_true", help="remove the fast keys that --fast added")
    add_json(form)


def _copy(add: AddCommand) -> None:
    command = add(
        "copy",
        "copy whole restore points to the second repository, COPY_REPOSITORY",
        {
            "": "copy all that it lacks, as virt-rbd-backup-copy.service does after each run",
            "--dry-run": "show what would be copied",
            "web01": "copy the restore points of one domain",
        },
    )
    add_domains(command, "saved")
    command.add_argument("--dry-run", action="store_true", help="only show what would be copied")


def _prune(add: AddCommand) -> None:
    command = add(
        "prune",
        "remove the restore points that KEEP_LAST and KEEP_WITHIN_DAYS do not keep",
        {
            "": "remove those of all domains; each run does it for the domains that it saves",
            "--dry-run": "show what would be removed",
            "'db*'": "remove those of these domains only",
        },
    )
    add_domains(command, "saved")
    command.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def _cleanup(add: AddCommand) -> None:
    command = add(
        "cleanup",
        "thaw guests and remove leftovers of interrupted runs",
        {
            "": "clean up after a run was killed",
            "--all": "clean up after OUTPUT was changed to restic",
        },
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--thaw",
        action="store_true",
        help="only thaw guests, until none may be frozen any more, as virt-rbd-backup-thaw.service does",
    )
    what.add_argument(
        "--all",
        action="store_true",
        help="also remove base snapshots of incremental backups: each domain's next backup is a full read",
    )


COMMANDS: Sequence[Callable[[AddCommand], None]] = (
    _backup,
    _list,
    _status,
    _restore_points,
    _restore,
    _mount,
    _files,
    _verify,
    _drill,
    _check,
    _report,
    _key,
    _copy,
    _prune,
    _cleanup,
)
