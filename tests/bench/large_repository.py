"""What a large repository and many domains cost: an index of terabytes, 40 domains, lists of thousands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Callable
from uuid import NAMESPACE_DNS, uuid5

from tests.lab import RbdDisk
from tests.lab.sample import MIB

from .bench import Bench, say
from .changing import INCREMENTAL
from .contestants import Contestant
from .measure import Cost
from .repository_files import RepositoryFiles
from .subjects import GIB, OBJECT, Subject, spread, subject
from .table import HEAD, cells, markdown, median

BLOBS = 3_000_000
SMALL = 40  # domains
MANY = 500  # domains
SNAPSHOTS = 20_000
ONE_FILE = "restic backup of 1 kB"


def index(bench: Bench) -> str:
    """An index of 3 million blobs, 4.5 TB: one unchanged domain, beside one bare call of restic."""
    costs: dict[str, list[Cost]] = {}
    with subject(bench.lab, bench.directory, "index", 64 * MIB, spread(64 * MIB, 8 * MIB)) as made:
        contestant = bench.contestant("index")
        contestant.empty()
        for output in ("restic", INCREMENTAL):
            contestant.run(_backup(contestant, [made], output))
        size = _files(bench, contestant).add_index(BLOBS)
        say(f"index: {BLOBS} blobs, {size / 1e12:.1f} TB")
        commands: Mapping[str, Callable[[], Sequence[str]]] = {
            ONE_FILE: lambda: [str(contestant.restic.path), "backup", "--quiet", str(_kilobyte(contestant))],
            INCREMENTAL: lambda: _backup(contestant, [made], INCREMENTAL),
            "streaming": lambda: _backup(contestant, [made], "restic"),
        }
        contestant.run(commands[ONE_FILE]())  # restic's cache has the index from then on
        for number in range(bench.rounds):
            for name, command in commands.items():
                costs.setdefault(name, []).append(contestant.run(command()))
                say(f"index, round {number + 1}: {name}: {costs[name][-1].seconds:.1f} s")
        contestant.run(contestant.node.command("cleanup", "--all"))
        contestant.remove()
    medians = {name: median(found) for name, found in costs.items()}
    rows = [
        (name, f"{cost.seconds / medians[ONE_FILE].seconds:.2f}", *cells(cost))
        for name, cost in medians.items()
    ]
    return markdown(("backup", f"to {ONE_FILE}", *HEAD), rows)


def small_domains(bench: Bench) -> str:
    """40 domains of 64 MiB with 8 MiB of data, nothing changed: seconds a domain."""
    costs: dict[str, list[Cost]] = {}
    with ExitStack() as stack:
        made = [
            stack.enter_context(
                subject(bench.lab, bench.directory, f"small-{number}", 64 * MIB, spread(64 * MIB, 2 * OBJECT))
            )
            for number in range(SMALL)
        ]
        contestant = bench.contestant("small")
        contestant.empty()
        for output in ("restic", INCREMENTAL):
            contestant.run(_backup(contestant, made, output))
        for number in range(bench.rounds):
            for output in ("restic", INCREMENTAL):
                found = costs.setdefault(output, [])
                found.append(contestant.run(_backup(contestant, made, output)))
                say(f"small domains, round {number + 1}: {output}: {found[-1].seconds:.1f} s")
        contestant.run(contestant.node.command("cleanup", "--all"))
        contestant.remove()
    rows = [
        (output, f"{median(found).seconds / SMALL:.2f} s", *cells(median(found)))
        for output, found in costs.items()
    ]
    return markdown(("output", "a domain", *HEAD), rows)


def lists(bench: Bench) -> str:
    """`list` and `cleanup` of 500 domains, and `restore-points` of 20,000 snapshots."""
    contestant = bench.contestant("lists")
    contestant.empty()
    costs: dict[str, list[Cost]] = {}
    with subject(bench.lab, bench.directory, "lists", GIB, spread(GIB, OBJECT)) as made:
        contestant.run(_backup(contestant, [made], "restic"))
        _add_snapshots(bench, contestant)
        with _domains(bench, made):
            for _ in range(bench.rounds):
                for words in (("list",), ("cleanup",), ("restore-points",)):
                    cost = contestant.run(contestant.node.command(*words))
                    costs.setdefault(words[0], []).append(cost)
                    say(f"{words[0]}: {cost.seconds:.1f} s")
    contestant.remove()
    of = {"list": f"{MANY} domains", "cleanup": f"{MANY} domains", "restore-points": f"{SNAPSHOTS} snapshots"}
    rows = [(name, of[name], *cells(median(found))) for name, found in costs.items()]
    return markdown(("command", "of", *HEAD), rows)


def _backup(contestant: Contestant, made: Sequence[Subject], output: str) -> Sequence[str]:
    names = [one.name for one in made]
    constants = {"RESTIC_BINARY": str(contestant.restic.path), "OUTPUT": output}
    return contestant.node.command("backup", *names, **constants)


def _files(bench: Bench, contestant: Contestant) -> RepositoryFiles:
    return RepositoryFiles.of(contestant.node.repository, bench.restic, contestant.environment)


def _kilobyte(contestant: Contestant) -> str:
    path = contestant.node.directory / "kilobyte"
    path.write_bytes(b"0" * 1024)
    return str(path)


@contextmanager
def _domains(bench: Bench, made: Subject) -> Iterator[None]:
    """Have so many domains with the same image during the block."""
    with ExitStack() as stack:
        for number in range(MANY):
            name = f"bench-many-{number}"
            bench.lab.define_domain(name, [RbdDisk("vda", made.spec)])
            stack.callback(bench.lab.undefine_domain, name)
        yield


def _add_snapshots(bench: Bench, contestant: Contestant) -> None:
    """Copy the snapshots of the restore point that is there, as those of 100 domains, a day apart."""
    files = _files(bench, contestant)
    contents = [_content(bench, contestant, identifier) for identifier in _ids(bench, contestant)]
    began = datetime(2024, 1, 1, tzinfo=timezone.utc)
    for number in range(SNAPSHOTS // len(contents)):
        domain, day = number % 100, number // 100
        taken = began + timedelta(days=day, minutes=domain)
        for content in contents:
            files.add_snapshot(_as_of(content, f"domain{domain:03d}", taken))


def _as_of(content: Mapping[str, Any], domain: str, taken: datetime) -> Mapping[str, Any]:
    """Give a snapshot's content as that of another domain and time."""
    values = {"run": f"{taken:%Y%m%dT%H%M%SZ}-abcd", "uuid": str(uuid5(NAMESPACE_DNS, domain))}
    tags = [
        f"{name}={values[name]}" if (name := tag.partition("=")[0]) in values else tag
        for tag in content["tags"]
    ]
    time = taken.isoformat().replace("+00:00", "Z")
    return {**content, "hostname": domain, "time": time, "tags": tags, "parent": None}


def _ids(bench: Bench, contestant: Contestant) -> Sequence[str]:
    return [one["id"] for one in json.loads(_restic(bench, contestant, "snapshots", "--json"))]


def _content(bench: Bench, contestant: Contestant, identifier: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(_restic(bench, contestant, "cat", "snapshot", identifier))
    return content


def _restic(bench: Bench, contestant: Contestant, *words: str) -> bytes:
    command = [bench.restic, *words]
    return subprocess.run(command, env=contestant.environment, stdout=subprocess.PIPE, check=True).stdout
