"""How soon a guest answers: started as it is, and booted out of the repository by `drill --instant`."""

from __future__ import annotations

import statistics
import subprocess
import time

from tests.lab.programs import wait_until

from .bench import Bench, say
from .contestants import Contestant
from .distribution import BOOT_LIMIT, read_so_far, running_debian
from .guests import running_guest
from .table import markdown

OWN, INSTANT = "its own start", "drill --instant"
BOOTED = "booted out of the repository in"


def boots(bench: Bench) -> str:
    """A guest with two disks: from the command to the answer of its agent."""
    with running_guest(bench, 2) as name:
        return _both_ways(bench, name, max(1, bench.rounds))


def distribution(bench: Bench) -> str:
    """A Debian with systemd, 2 GiB: from the command to the answer of its agent, and what it reads for it."""
    with running_debian(bench) as name:
        read = read_so_far(bench, name)
        return f"{_both_ways(bench, name, 1)}\nIts own start reads {read / 1e6:.0f} MB of its disk.\n"


def _both_ways(bench: Bench, name: str, rounds: int) -> str:
    contestant = bench.contestant(f"boots {name}")
    contestant.empty()
    contestant.run(contestant.node.command("backup", name))
    seconds: dict[str, list[float]] = {OWN: [], INSTANT: []}
    for number in range(rounds):
        bench.lab.destroy_domain(name)
        began = time.monotonic()
        bench.lab.virsh("start", name)
        answers = f"the agent of {name} answers"
        wait_until(lambda: bench.lab.hypervisor.agent_answers(name), BOOT_LIMIT, answers)
        seconds[OWN].append(time.monotonic() - began)
        seconds[INSTANT].append(_until_it_answers(contestant, name))
        last = ", ".join(f"{way} {found[-1]:.1f} s" for way, found in seconds.items())
        say(f"boots of {name}, round {number + 1}: {last}")
    contestant.remove()
    own = statistics.median(seconds[OWN])
    rows = [
        (way, f"{statistics.median(found):.1f} s", f"{statistics.median(found) - own:+.1f} s")
        for way, found in seconds.items()
    ]
    return markdown(("way", "median", f"to {OWN}"), rows)


def _until_it_answers(contestant: Contestant, name: str) -> float:
    """Drill it, and return how long it took until the agent answered."""
    command = contestant.node.command("drill", name, "--instant", DRILL_BOOT_TIMEOUT=BOOT_LIMIT)
    began, answered = time.monotonic(), 0.0
    with subprocess.Popen(command, env=contestant.environment, stderr=subprocess.PIPE, text=True) as drill:
        assert drill.stderr
        for line in drill.stderr:
            if BOOTED in line:
                answered = time.monotonic()
    if drill.returncode or not answered:
        raise SystemExit(f"drill --instant of {name} failed with exit code {drill.returncode}")
    return answered - began
