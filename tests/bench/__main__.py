"""The benchmark: tests/bench/run, as root. Prints tables of medians, and draws a chart; takes its time."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

from tests.lab import Lab, running_lab

from .bench import Bench
from .boots import boots, distribution
from .changing import changing, terabyte
from .comeback import comeback
from .disks import disks
from .guests import freeze, keeping, write_latency
from .instant import instant
from .large import large
from .large_repository import index, lists, small_domains
from .plain_files import plain_files
from .progress import progress
from .races import domains, fragments, latency, main_race, sizes
from .second_pool import far_away, second_pool
from .starts import starts

PARTS: Mapping[str, Callable[[Bench], str]] = {
    "main": main_race,
    "fragments": fragments,
    "latency": latency,
    "domains": domains,
    "disks": disks,
    "guest": write_latency,
    "freeze": freeze,
    "start": starts,
    "boots": boots,
    "distribution": distribution,
    "sizes": sizes,
    "restore": comeback,
    "instant": instant,
    "changes": changing,
    "terabyte": terabyte,
    "large": large,
    "index": index,
    "small": small_domains,
    "lists": lists,
    "keeping": keeping,
    "progress": progress,
    "rbd": second_pool,
    "far": far_away,
    "directory": plain_files,
}


def main() -> int:
    options = _parse()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virt-rbd-backup-bench")))
        bench = Bench(_lab(directory, stack), directory, options.restic, options.rounds, options.chart)
        print(f"{_machine(options.restic)} Medians of {options.rounds} rounds.", flush=True)
        for name in options.only:
            print(f"\n### {name}: {PARTS[name].__doc__}\n\n{PARTS[name](bench)}", flush=True)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--restic", default="restic", help="the program (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison (default: %(default)s)")
    parser.add_argument(
        "--only", metavar="PART", nargs="+", choices=PARTS, default=[*PARTS], help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--chart", type=Path, default=Path("benchmark.png"), help="of the main part (default: %(default)s)"
    )
    return parser.parse_args()


def _lab(directory: Path, stack: ExitStack) -> Lab:
    """Bring up a lab; or use the one in LAB_DIRECTORY, which stays up."""
    if "LAB_DIRECTORY" in os.environ:
        return Lab(Path(os.environ["LAB_DIRECTORY"]))
    return stack.enter_context(running_lab(directory / "lab"))


def _machine(restic: str) -> str:
    def version(*command: str) -> str:
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return " ".join(printed.split()[:3])

    versions = f"{version(restic, 'version')}, {version('ceph', '--version')}"
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}."


if __name__ == "__main__":
    sys.exit(main())
