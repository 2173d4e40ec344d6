"""outputs/restic_repository/manifest_cache.py: what it returns is the manifest, or nothing."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backup.stored import PointId, StoredPoint
from backup.system.spool import Spool, whole
from outputs.restic_repository import manifest_cache
from outputs.restic_repository.manifest_cache import ManifestCache

from ..samples import OTHER_UUID, RUN, UUID, held_point

FULL = "0123abcd" * 8
PACKED = b"the manifest"


@pytest.fixture
def cache(tmp_path: Path) -> ManifestCache:
    return ManifestCache(str(tmp_path / "state"))


def files(cache: ManifestCache) -> list[Path]:
    return sorted(Path(cache.state_dir, "manifests").iterdir())


def point(manifest_id: str = FULL, uuid: str = UUID, run: str = RUN) -> StoredPoint:
    return held_point(run, uuid, manifest_id=manifest_id)


def found(cache: ManifestCache) -> bytes | None:
    packed = cache.find(point())
    return whole(packed) if packed else None


def keep(cache: ManifestCache, manifest_id: str = FULL, uuid: str = UUID, packed: bytes = PACKED) -> None:
    cache.keep(PointId(RUN, uuid), manifest_id, Spool(packed))


@pytest.mark.parametrize("known", [FULL, FULL[:8]])
def test_a_manifest_is_found_by_its_snapshot_s_id_or_its_beginning(cache: ManifestCache, known: str) -> None:
    keep(cache, known)
    assert found(cache) == PACKED
    assert cache.find(point("4" * 64)) is None
    assert cache.find(point(uuid=OTHER_UUID)) is None


@pytest.mark.parametrize("known", ["", FULL[:7]])
def test_a_shorter_id_names_nothing(cache: ManifestCache, known: str) -> None:
    keep(cache, known)
    assert cache.find(point()) is None


def test_the_same_beginning_of_an_id_in_another_run_names_nothing(cache: ManifestCache) -> None:
    keep(cache, FULL[:8])
    assert cache.find(point(run="20240204T040506Z-abcd")) is None
    other_attempt = replace(point(), id=PointId(RUN, UUID, 2))
    assert cache.find(other_attempt) is None


@pytest.mark.parametrize("content", [b"", b"short", bytes(32) + PACKED])
def test_a_damaged_file_is_not_used(cache: ManifestCache, content: bytes) -> None:
    keep(cache)
    (path,) = files(cache)
    path.write_bytes(content)
    assert cache.find(point()) is None


def test_a_changed_byte_is_noticed(cache: ManifestCache) -> None:
    keep(cache)
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert cache.find(point()) is None


def test_only_the_newest_manifest_of_a_domain_is_kept_and_nobody_else_may_read_it(
    cache: ManifestCache,
) -> None:
    keep(cache, "4" * 64)
    keep(cache)
    (path,) = files(cache)
    assert path.name.endswith(FULL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_all_together_they_have_a_limited_size_and_the_oldest_go(
    cache: ManifestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_cache, "SIZE_LIMIT", 3000)
    for number in range(5):
        keep(cache, uuid=f"uuid{number}", packed=bytes(900))
        path = next(one for one in files(cache) if f"uuid{number}" in one.name)
        os.utime(path, (number, number))
    assert [path.name[:5] for path in files(cache)] == ["uuid2", "uuid3", "uuid4"]
    keep(cache, uuid="large", packed=bytes(3001))
    assert "large" not in [path.name[:5] for path in files(cache)]


def test_without_a_directory_that_can_be_written_nothing_is_cached(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    broken = ManifestCache(str(tmp_path / "state"))
    keep(broken)
    assert broken.find(point()) is None
    none = ManifestCache("")
    keep(none)
    assert none.find(point()) is None
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_directory_that_cannot_be_listed_has_no_manifests(
    cache: ManifestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    keep(cache)
    monkeypatch.setattr(Path, "glob", stale)
    assert cache.find(point()) is None
    cache.drop(point().id.uuid)


def test_many_workers_at_once_each_leave_their_manifest(cache: ManifestCache) -> None:
    with ThreadPoolExecutor(8) as workers:
        for number in range(200):
            workers.submit(keep, cache, f"{number % 4:064x}", f"uuid{number // 4}")
    assert len({path.name.partition(".")[0] for path in files(cache)}) == 50


def test_a_file_that_is_too_large_to_be_one_of_ours_is_not_read(
    cache: ManifestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache)
    monkeypatch.setattr(manifest_cache, "SIZE_LIMIT", len(PACKED))
    assert found(cache) == PACKED
    (path,) = files(cache)
    os.truncate(path, 8 << 40)  # more than any memory
    assert cache.find(point()) is None
