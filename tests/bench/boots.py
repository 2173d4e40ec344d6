"""How soon a guest answers: started as it is, and booted out of the repository by `drill --instant`."""

from __future__ import annotations

import statistics
import subprocess
import time

from .bench import Bench, say
from .contestants import Contestant
from .guests import running_guest
from .table import markdown

OWN, INSTANT = "its own start", "drill --instant"
BOOTED = "booted out of the repository in"


def boots(bench: Bench) -> str:
    """A guest with two disks: from the command to the answer of its agent."""
    with running_guest(bench, 2) as name:
        contestant = bench.contestant("boots")
        contestant.empty()
        contestant.run(contestant.node.command("backup", name))
        seconds: dict[str, list[float]] = {OWN: [], INSTANT: []}
        for number in range(bench.rounds):
            bench.lab.destroy_domain(name)
            began = time.monotonic()
            bench.lab.start_domain(name, wait_for_agent=True)
            seconds[OWN].append(time.monotonic() - began)
            seconds[INSTANT].append(_until_it_answers(contestant, name))
            last = ", ".join(f"{way} {found[-1]:.1f} s" for way, found in seconds.items())
            say(f"boots, round {number + 1}: {last}")
        contestant.remove()
    own = statistics.median(seconds[OWN])
    rows = [
        (way, f"{statistics.median(found):.1f} s", f"{statistics.median(found) - own:+.1f} s")
        for way, found in seconds.items()
    ]
    return markdown(("way", "median", f"to {OWN}"), rows)


def _until_it_answers(contestant: Contestant, name: str) -> float:
    """Drill it, and return how long it took until the agent answered."""
    command = contestant.node.command("drill", name, "--instant")
    began, answered = time.monotonic(), 0.0
    with subprocess.Popen(command, env=contestant.environment, stderr=subprocess.PIPE, text=True) as drill:
        assert drill.stderr
        for line in drill.stderr:
            if BOOTED in line:
                answered = time.monotonic()
    if drill.returncode or not answered:
        raise SystemExit(f"drill --instant of {name} failed with exit code {drill.returncode}")
    return answered - began
