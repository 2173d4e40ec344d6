"""backup/restore/order.py: options that contradict each other are refused, all at once."""

from __future__ import annotations

from typing import Any

import pytest

from backup.errors import ConfigError
from backup.restore.order import RestoreOrder

from ..samples import image

WRONG: dict[str, dict[str, Any]] = {
    "--to-pool and --to-image exclude each other": {"to_pool": "a", "to_image": "a/b"},
    "--no-network requires --define": {"no_network": True},
    "--instant and --disk exclude each other": {"instant": True, "disks": ("vda",)},
    "--instant and --to-file exclude each other": {"instant": True, "to_file": "/x"},
    "--instant and --to-image exclude each other": {"instant": True, "to_image": "a/b"},
    "--clone and --damaged exclude each other: clones are not compared": {"clone": True, "damaged": True},
    "--abort requires --instant": {"abort": True},
    "--discard requires --abort": {"instant": True, "discard": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_options_that_contradict_each_other_are_refused(message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RestoreOrder("web", **WRONG[message]).complete().require_consistent()
    assert [error.message for error in caught.value.errors] == [message]


def test_an_instant_restore_defines_and_starts_the_domain() -> None:
    order = RestoreOrder("web", instant=True, name="copy", to_pool="scratch/ns", suffix="-x").complete()
    order.require_consistent()
    assert (order.define, order.start) == (True, True)
    assert order.destination(image("vms/web")) == image("scratch/ns/web-x")
    assert not RestoreOrder("web").complete().define


def test_its_options_are_shown_as_they_are_typed() -> None:
    order = RestoreOrder(
        "web", "2026-11-25 03:00", to_pool="ssd/ns", suffix="-copy", name="copy", new_uuid=True, force=True
    )
    expected = "'--at=2026-11-25 03:00' --to-pool=ssd/ns --suffix=-copy --name=copy --new-uuid --force"
    assert order.options == expected
    assert RestoreOrder("web", damaged=True).options == "--damaged"
    assert RestoreOrder("web").options == ""
