"""backup/ceph/watchers.py: who uses an image; an rbd-mirror does not."""

from __future__ import annotations

from typing import Any

import pytest
import rbd

from backup.ceph import watchers
from backup.ceph.watchers import MIRRORING_OBJECT, users

WATCHERS = [
    {"addr": "192.0.2.1:0/11", "id": 4101, "cookie": 7},
    {"addr": "192.0.2.2:0/22", "id": 4102, "cookie": 7},
]


class PaperWatched:
    """A fake rbd.Image with watchers."""

    def __init__(self, mirrored: bool) -> None:
        self._state = rbd.RBD_MIRROR_IMAGE_ENABLED if mirrored else rbd.RBD_MIRROR_IMAGE_DISABLED

    def watchers_list(self) -> list[dict[str, Any]]:
        return WATCHERS

    def mirror_image_get_info(self) -> dict[str, Any]:
        return {"state": self._state}


class PaperPool:
    """A fake rados.Ioctx whose mirrors answer, or do not."""

    def __init__(self, answers: Any = None, timeouts: Any = None, silent: bool = False) -> None:
        self._result = (answers, timeouts)
        self._silent = silent
        self.asked: list[str] = []

    def aio_notify(self, name: str, complete: Any, message: str, timeout_ms: int) -> None:
        self.asked.append(name)
        if not self._silent:
            complete(None, 0, *self._result)


def of(pool: PaperPool, mirrored: bool = True) -> list[str]:
    return [address.rpartition("/")[2] for address in users(pool, PaperWatched(mirrored))]


@pytest.mark.parametrize("timed_out", [False, True])
def test_a_mirror_is_no_user_even_if_it_does_not_answer(timed_out: bool) -> None:
    mirror = [(4102, 9)]
    assert of(PaperPool(timeouts=mirror) if timed_out else PaperPool(answers=[(4102, 9, b"")])) == ["11"]


def test_without_a_mirror_all_are_users() -> None:
    assert of(PaperPool()) == ["11", "22"]


def test_no_mirror_is_asked_for_an_image_that_is_not_mirrored() -> None:
    pool = PaperPool(answers=[(4102, 9, b"")])
    assert of(pool, mirrored=False) == ["11", "22"]
    assert pool.asked == []


def test_a_cluster_that_does_not_answer_makes_nobody_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "ANSWER_LIMIT", 0)
    monkeypatch.setattr(watchers, "MARGIN", 0.1)
    pool = PaperPool(silent=True)
    assert of(pool) == ["11", "22"]
    assert pool.asked == [MIRRORING_OBJECT]
