"""An instant restore runs a guest out of the repository, and moves it to its images; no write is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.instant_guest import (
    NAME,
    RestoredGuest,
    images_dir,
    lost_guest,
)
from tests.integration.node import Node
from tests.lab import Lab

FIRMWARE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture
def guest(node: Node, lab: Lab, tmp_path: Path) -> Iterator[RestoredGuest]:
    """A guest with two disks, saved, then lost; what the test has made of it is removed."""
    node.constants["DRILL_DIR"] = str(images_dir(tmp_path))
    with lost_guest(node, lab) as guest:
        yield guest


@pytest.mark.parametrize("output", ["restic", "restic_incremental"])
def test_a_lost_guest_runs_at_once_and_ends_on_its_images_as_after_a_plain_restore(
    node: Node, lab: Lab, tmp_path: Path, output: str
) -> None:
    node.constants.update(OUTPUT=output, DRILL_DIR=str(images_dir(tmp_path)))
    with lost_guest(node, lab) as guest:
        done = node.run("restore", NAME, "--instant")
        assert done.returncode == 0, done.stderr
        assert re.search(rf"{NAME}: the guest was paused for 0\.\d+ s", done.stderr), done.stderr
        assert "restored to vms/instant01-a" in done.stderr
        guest.require_on_images()
        guest.require_no_gap()
