"""The lab by hand: python3 -m tests.lab up | down | status."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.lab import Lab, LabError
from tests.lab.sample import add_sample_domains

DEFAULT_DIRECTORY = Path(tempfile.gettempdir()) / "virt-rbd-backup-lab"


def main() -> int:
    options = _parse()
    lab = Lab(options.directory)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if options.command == "up":
            lab.up()
            if options.with_domains:
                add_sample_domains(lab)
        elif options.command == "down":
            lab.down()
        if options.command != "down":
            print(_description(lab))
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="default: %(default)s")
    parser.add_argument("--with-domains", action="store_true", help="up: with the sample domains")
    return parser.parse_args()


def _description(lab: Lab) -> str:
    if not lab.exists():
        return f"no lab in {lab.directory}"
    pids = f"monitor pid {lab.mon_pid}, OSD pid {lab.osd_pid}, libvirtd pid {lab.libvirtd_pid}"
    return f"""\
The lab in {lab.directory} is up: {pids}.
  Ceph       pools vms and ssd; user client.{lab.ceph_user}; to use it: export CEPH_CONF={lab.ceph_conf}
  libvirt    {lab.libvirt_uri}; secret {lab.secret_uuid} holds the key of client.{lab.ceph_user}
  take down  python3 -m tests.lab down --directory {lab.directory}
  domains
{lab.virsh("list", "--all").rstrip() or " none"}"""


if __name__ == "__main__":
    sys.exit(main())
