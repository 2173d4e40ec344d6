"""One lab for all integration tests, what must be true after each, and how several labs share the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pytest

from tests.integration.left_behind import remove_left_behind, require_clean
from tests.integration.node import Node
from tests.lab import Lab, running_lab
from tests.lab.sample import add_sample_domains

# A directory in which the processes that share the tests claim one module after the other.
CLAIMS = "TESTS_CLAIMS"
# The first one needs a lab whose OSD has not been restarted: that holds the stalled groups up. The others
# take long: begun first, they have all labs end at about the same time.
EARLY = ("test_stalled_cluster", "test_processes", "test_back_ends", "test_installation", "test_migration")


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
    try:
        require_clean(lab, node)
    except BaseException:  # whatever it was, the next test needs a clean lab
        remove_left_behind(lab, node)
        raise


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the modules that no other process has claimed; without CLAIMS all of them, as usual."""
    if CLAIMS not in os.environ or session.config.option.collectonly or session.testsfailed:
        return None
    items = (item for module in _in_order(session.items) if _claimed(module[0].path) for item in module)
    item = next(items, None)
    while item:
        following = next(items, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _in_order(items: Sequence[pytest.Item]) -> Sequence[Sequence[pytest.Item]]:
    """Return the modules' tests: those of EARLY, then of others that need a lab, then of all others."""

    def place(module: Sequence[pytest.Item]) -> tuple[int, bool]:
        path = module[0].path
        early = EARLY.index(path.stem) if path.stem in EARLY else len(EARLY)
        return early, not {"faults", "integration"} & {*path.parts}

    return sorted((list(group) for _, group in groupby(items, lambda item: item.path)), key=place)


def _claimed(path: Path) -> bool:
    name = str(path).replace("/", "-")
    try:
        Path(os.environ[CLAIMS], name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
