"""Chaos: rounds of commands and faults on a real lab, each followed by a check of what has to hold.

tests/chaos/run --rounds 20             a fresh seed, which is printed
tests/chaos/run --seed 7 --first 12 --rounds 1     round 12 of seed 7 once more, as far as timing lets it
tests/chaos/run --kills 100             kills within the quiesced moment, each followed by the guest's writes

A round that fails names the invariant, the faults with their moments, and the directory with its logs: `plan`
is what was drawn, `faults` what happened when, `violations` and `state` what was found; each command has its
settings (.py), its words at level debug (.stderr) and its report. What does not count, as the lab itself
broke or a kill came too late, is drawn anew. The exit code is 1 if any round failed, or too few counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.kills import kills
from tests.chaos.rounds import rounds


def main() -> int:
    options = _parse()
    logs = options.logs or Path(tempfile.mkdtemp(prefix="virt-rbd-backup-chaos-"))
    logs.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}; logs of what fails: {logs}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="virt-rbd-backup-chaos-lab-") as scratch:
        Path(scratch).chmod(0o711)  # QEMU's user has to reach what instant restores make
        tried = kills if options.kills else rounds
        tally = tried(options, Path(scratch), logs)
    print(f"{tally}; {time.monotonic() - began:.0f} s, seed {options.seed}", flush=True)
    return tally.exit_code


def _parse() -> argparse.Namespace:
    description = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__, formatter_class=description)
    parser.add_argument("--rounds", type=int, default=20, help="how many (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: fresh"
    )
    parser.add_argument(
        "--first", type=int, default=1, help="number of the first round (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="so many kills instead of rounds")
    parser.add_argument("--logs", type=Path, help="directory for the logs of what fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
