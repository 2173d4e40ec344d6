"""One lab for all integration tests, and what must be true after each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.left_behind import require_clean
from tests.integration.node import Node
from tests.lab import Lab, running_lab
from tests.lab.sample import add_sample_domains


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Bring up a lab with the sample domains; or use the one in LAB_DIRECTORY, which stays up."""
    if "LAB_DIRECTORY" in os.environ:
        lab = Lab(Path(os.environ["LAB_DIRECTORY"]))
        if not lab.virsh("list", "--all", "--name").strip():
            add_sample_domains(lab)
        yield lab
        return
    with running_lab(tmp_path_factory.mktemp("lab") / "lab") as lab:
        add_sample_domains(lab)
        yield lab


@pytest.fixture
def node(lab: Lab, tmp_path: Path) -> Iterator[Node]:
    """A node with an empty repository; after the test nothing may be left and the guests have to write."""
    node = Node(lab, tmp_path)
    yield node
    require_clean(lab, node)
