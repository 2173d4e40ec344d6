"""The command status: every domain from any node, what its base snapshots hold, and what runs now."""

from __future__ import annotations

import json
from typing import Any

from tests.faults.provoke import HeldBackRestic
from tests.integration.node import Node
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB


def shown(node: Node, *words: str, **constants: object) -> dict[str, Any]:
    done = node.run("status", "--json", *words, **constants)
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["domains"]}


def test_what_holds_space_and_what_runs_is_shown(node: Node, lab: Lab) -> None:
    node.constants["OUTPUT"] = "restic_incremental"
    assert node.run("backup", WEB).returncode == 0
    before = shown(node)
    assert before[WEB]["base_snapshots"]["number"] == 2
    assert 0 <= before[WEB]["base_snapshots"]["used_bytes"] < 384 << 20
    assert before[WEB]["job"] == ""
    assert (before[ARCHIVE]["taken"], before[ARCHIVE]["selected"]) == (None, True)
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", ARCHIVE, RESTIC_BINARY=restic.path, OUTPUT="restic") as process:
        restic.reached()
        during = shown(node, ARCHIVE, RUNTIME_DIR=str(node.directory / "other"))
        process.terminate()
        process.communicate(timeout=300)
    assert during[ARCHIVE]["job"].startswith("backup on ")
    assert shown(node, ARCHIVE)[ARCHIVE]["job"] == "", "its lock is gone"
    assert node.run("cleanup", "--all").returncode == 0


def test_a_check_for_nagios_judges_what_any_node_has_saved(node: Node) -> None:
    late = node.run("status", "--max-age", "1h", WEB, ARCHIVE)
    assert (late.returncode, late.stdout.split(":")[0]) == (2, "CRITICAL"), late.stdout
    assert node.run("backup", WEB, ARCHIVE).returncode == 0
    elsewhere = node.run_elsewhere("status", "--max-age", "1h", WEB, ARCHIVE)
    assert (elsewhere.returncode, elsewhere.stdout) == (
        0,
        "OK: 2 of 2 domains have a restore point of the last 60 min\n",
    )
