"""outputs/restic.py: a restore point in a repository is complete, or does not exist."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backup.errors import BackupError, Interrupted
from backup.run.incomplete_points import incomplete
from backup.stored import PointId, SavedImage
from backup.system.spool import Spool
from backup.system.stop_request import StopRequest
from outputs import chosen, readable
from outputs.restic import Restic
from outputs.restic_repository import program as restic_process
from outputs.restic_repository import repository as restic_repository
from outputs.restic_repository.messages import ResticError
from outputs.restic_repository.repository import named

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..recorder import Recorder
from ..repository import Repository
from ..samples import MIB, RUN, UUID, domain, rbd_disk, restore_point, settings

pytestmark = pytest.mark.usefixtures("nothing_left")

DATA = bytes(range(1, 256)) * 5000


def save(
    repository: Repository, sources: Sequence[MemorySource] = (), name: str = "web"
) -> Sequence[SavedImage]:
    point = restore_point(domain(name, disks=[source.disk for source in sources]))
    return Restic(repository.program()).save(point, sources, JobOnPaper())


def test_a_snapshot_is_needed_only_until_its_image_is_saved(repository: Repository) -> None:
    good, bad = MemorySource(MemorySnapshot(MIB)), MemorySource(MemorySnapshot(MIB, {0: b"x"}, fails_at=0))
    job, point = JobOnPaper(), restore_point(domain())
    with pytest.raises(BackupError):
        Restic(repository.program()).save(point, [good, bad], job)
    assert job.released == [good]


@dataclass(frozen=True)
class Saved:
    """A repository with one restore point of two images in it."""

    repository: Repository
    sources: Sequence[MemorySource]
    images: Sequence[SavedImage]
    snapshots: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    repository = Repository(tmp_path_factory.mktemp("saved"))
    sources = [
        MemorySource(
            MemorySnapshot(9 * MIB + 513, {0: DATA, 5 * MIB - 2: DATA, 9 * MIB + 512: b"x"}),
            rbd_disk("vda", "ssd/tests/web root, 100%", encryption="luks2"),
        ),
        MemorySource(MemorySnapshot(0), rbd_disk("vdb", "vms/empty")),
    ]
    images = save(repository, sources)
    return Saved(repository, sources, images, repository.snapshots())


def test_an_image_is_restored_byte_for_byte(saved: Saved) -> None:
    dumped = saved.repository.dump(saved.images[0].restore_id, "vda.img")
    assert dumped == saved.sources[0].snapshot.content


def test_each_image_has_a_result(saved: Saved) -> None:
    results = [(image.target, image.image, image.size, image.data_bytes) for image in saved.images]
    read = [sum(read.length for read in source.snapshot.reads) for source in saved.sources]
    assert results == [
        ("vda", "ssd/tests/web root, 100%", 9 * MIB + 513, read[0]),
        ("vdb", "vms/empty", 0, 0),
    ]
    assert saved.images[0].stored_bytes > 0
    assert saved.snapshots["vda.img of web"]["id"].startswith(saved.images[0].restore_id)


def test_each_image_and_the_definition_are_a_snapshot_with_the_domain_as_host(saved: Saved) -> None:
    assert set(saved.snapshots) == {"vda.img of web", "definition.tar of web"}


def test_tags_have_run_uuid_consistency_disk_image_and_encryption_and_are_not_split(
    saved: Saved,
) -> None:
    common = {"virt-rbd-backup", f"run={RUN}", f"uuid={UUID}", "consistency=filesystem"}
    assert {name: set(one["tags"]) - common for name, one in saved.snapshots.items()} == {
        "vda.img of web": {"disk=vda", "image=ssd/tests/web root%2C 100%25", "encryption=luks2"}
        | {f"size={9 * MIB + 513}"},
        "definition.tar of web": {"definition", "node=node1"},
    }
    assert all(common <= set(one["tags"]) for one in saved.snapshots.values())


def test_all_have_the_time_of_the_snapshots_in_utc(saved: Saved) -> None:
    assert {one["time"] for one in saved.snapshots.values()} == {"2024-02-03T04:05:06Z"}


def test_an_empty_image_is_in_the_manifest_only(saved: Saved) -> None:
    packed = saved.repository.dump(saved.snapshots["definition.tar of web"]["id"], "definition.tar")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        file: Any = tar.extractfile("manifest.json")
        images = {image["target"]: image for image in json.load(file)["images"]}
    assert [image["size"] for image in images.values()] == [9 * MIB + 513, 0]
    assert (images["vdb"]["restore_id"], images["vda"]["restore_id"]) == ("", saved.images[0].restore_id)


def test_nothing_is_locked_afterwards(saved: Saved) -> None:
    assert saved.repository.locks() == []


ODD_NAMES = ("--delete", "a,b", "x/größe")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    """Repositories by the name of the only domain in them, which has no image.

    One each, as they are made at the same time: restic 0.14 may then wait 40 s for a lock that is gone.
    """
    repositories = {name: Repository(tmp_path_factory.mktemp("manifest")) for name in ODD_NAMES}
    with ThreadPoolExecutor() as threads:
        [*threads.map(lambda name: save(repositories[name], name=name), ODD_NAMES)]
    return repositories


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_domain_s_name_is_taken_literally_whatever_it_looks_like(
    manifests: dict[str, Repository], name: str
) -> None:
    assert set(manifests[name].snapshots()) == {f"definition.tar of {name}"}


def test_without_every_image_there_is_no_manifest(repository: Repository) -> None:
    sources = [
        MemorySource(MemorySnapshot(2 * MIB, {0: DATA}), rbd_disk("vda", "vms/a")),
        MemorySource(MemorySnapshot(9 * MIB, {0: DATA, 5 * MIB: DATA}, fails_at=1), rbd_disk("vdb", "vms/b")),
    ]
    with raises(f"cannot read {len(DATA)} bytes at {5 * MIB}"):
        save(repository, sources)
    assert set(repository.snapshots()) == {"vda.img of web"}
    assert repository.locks() == []


def test_a_request_to_stop_within_an_image_begins_no_other_and_no_manifest(
    repository: Repository, tmp_path: Path
) -> None:
    class StopsAtProgress(Recorder):
        def progress(self, domain: str, target: str, done: int, size: int) -> None:
            job.stop.request(Interrupted("interrupted", 15))

    job = JobOnPaper(StopsAtProgress())
    fake = tmp_path / "fake-restic"
    fake.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\ncat >/dev/null\n')
    fake.chmod(0o700)
    sources = [
        MemorySource(MemorySnapshot(40 * MIB, {4 * MIB: DATA}), rbd_disk(target, f"vms/{target}"))
        for target in ("vda", "vdb")
    ]
    with raises("interrupted", Interrupted):
        Restic(repository.program(str(fake))).save(restore_point(domain()), sources, job)
    (call,) = [call for call in (tmp_path / "calls").read_text().splitlines() if "--stdin" in call]
    assert "image=vms/vda" in call
    assert "encryption" not in call, "it is not encrypted"


def test_progress_and_the_end_of_each_image_are_reported_for_its_domain_and_disk(
    repository: Repository, tmp_path: Path
) -> None:
    size = 5 * MIB
    summary = {"message_type": "summary", "snapshot_id": "0123abcd", "data_added": 3 * MIB}
    fake = tmp_path / "fake-restic"
    counted = f"{json.dumps(summary)[:-1]}, \"total_bytes_processed\": '$(wc -c)'}}"
    fake.write_text(f"#!/bin/sh\necho '{counted}'\n")
    fake.chmod(0o700)
    recorder = Recorder()
    sources = [MemorySource(MemorySnapshot(size, {4 * MIB: b"x"}), rbd_disk("vdb", "vms/web-data"))]
    job = JobOnPaper(recorder)
    point = restore_point(domain(disks=[source.disk for source in sources]))
    Restic(repository.program(str(fake))).save(point, sources, job)
    assert recorder.progressed == [("web", "vdb", 4 * MIB + 1, size), ("web", "vdb", size, size)]
    ((_, name, text),) = recorder.messages
    assert name == "web"
    assert text.startswith("vdb (vms/web-data) saved: 5.0 MiB, 1 B of data, 3.0 MiB new, in ")


def test_only_images_without_a_manifest_are_discarded(saved: Saved, repository: Repository) -> None:
    shutil.copytree(saved.repository.path, repository.path, dirs_exist_ok=True)  # complete, of this run
    output = Restic(repository.program())
    assert [point.id for point in incomplete(output.ready())] == []
    complete = set(repository.snapshots())
    half = PointId(RUN, "incomplete")
    tags = ("--tag=virt-rbd-backup", f"--tag=run={half.run}", f"--tag=uuid={half.uuid}")
    with repository.program().backup(tags, lambda: None) as backup:
        backup.sink.write(b"half a restore point")
    assert [point.id for point in incomplete(output.ready())] == [half]
    output.discard([PointId("20200101T000000Z-othr", half.uuid), PointId(RUN, UUID)], wait_if_busy=False)
    assert len(repository.snapshots()) == len(complete) + 1
    output.discard([half], wait_if_busy=False)
    assert set(repository.snapshots()) == complete
    assert repository.locks() == []


def test_withdrawn_points_lose_their_manifests_before_their_images(
    repository: Repository, tmp_path: Path
) -> None:
    tags = ["virt-rbd-backup", f"run={RUN}", f"uuid={UUID}"]
    listed = [{"id": "image-1", "tags": tags}, {"id": "manifest", "tags": [*tags, "definition"]}]
    listed = [*listed, {"id": "image-2", "tags": tags}]
    fake = tmp_path / "fake-restic"
    forget = f'echo "$*" >>{tmp_path}/calls; [ "$*" = "${{*%image*}}" ]; exit'
    script = f'case "$*" in *forget*) {forget} ;; esac'
    fake.write_text(f"#!/bin/sh\n{script}\necho '{json.dumps(listed)}'\n")
    fake.chmod(0o700)
    with raises("restic forget failed with exit code 1"):
        Restic(repository.program(str(fake))).withdraw([PointId(RUN, UUID)])
    calls = [call.split("--quiet ")[1] for call in (tmp_path / "calls").read_text().splitlines()]
    assert calls == ["manifest", "image-1 image-2"]


def listing(directory: Path, error: str) -> Path:
    """Make a restic that lists a restore point's image, lacks its manifest, and prints this error."""
    image = {"id": "image-1", "hostname": "web", "time": "2024-02-03T04:05:06Z"}
    image["tags"] = ["virt-rbd-backup", f"run={RUN}", f"uuid={UUID}", "disk=vda"]  # type: ignore[assignment]
    (directory / "errors").write_text(error)
    (directory / "listed").write_text(json.dumps([image] if "Ignoring" in error else None))
    fake = directory / "fake-restic"
    fake.write_text(
        f'#!/bin/sh\necho "$*" >>{directory}/calls\n'
        'case "$*" in *version*) echo "restic 0.14.0"; exit ;; esac\n'
        f"cat {directory}/errors >&2; cat {directory}/listed\n"
    )
    fake.chmod(0o700)
    return fake


IGNORED = 'Ignoring "0123456789": load snapshot: connection lost'


@pytest.mark.parametrize(
    "error",
    [
        IGNORED,
        json.dumps({"message_type": "error", "error": {"message": IGNORED}}),
        "could not load snapshots: connection lost",
    ],
)
@pytest.mark.parametrize(
    "remove",
    [
        lambda output: output.discard([PointId(RUN, UUID)], True),
        lambda output: output.withdraw([PointId(RUN, UUID)]),
        lambda output: replace(output, strict=True).restore_points(),
    ],
)
def test_what_restic_cannot_read_is_not_taken_for_missing(
    repository: Repository, tmp_path: Path, error: str, remove: Any
) -> None:
    with pytest.raises(ResticError, match=r"restic snapshots could not read all snapshots: .*lost") as caught:
        remove(Restic(repository.program(str(listing(tmp_path, error)))))
    assert caught.value.transient
    assert "forget" not in (tmp_path / "calls").read_text()


def test_what_forget_could_not_read_is_not_removed(repository: Repository) -> None:
    with pytest.raises(ResticError, match="restic forget could not read all snapshots: Ignoring"):
        Restic(repository.program())._forget(["0" * 64], lambda: None)


def test_a_listing_for_reading_lacks_only_what_is_damaged(repository: Repository, tmp_path: Path) -> None:
    output = Restic(repository.program(str(listing(tmp_path, IGNORED))))
    assert [point.id for point in output.restore_points()] == [PointId(RUN, UUID)]
    assert [point.id for point in replace(output, strict=True).ready()] == [PointId(RUN, UUID)]
    none = Restic(repository.program(str(listing(tmp_path, "could not load snapshots: lost"))))
    for listed in (none.restore_points, none.ready, partial(none.last_saved, UUID)):
        with pytest.raises(ResticError, match="could not read all snapshots"):
            listed()


@pytest.mark.parametrize("name", ["restic", "restic_incremental"])
def test_a_run_lists_strictly_what_it_has_saved(name: str) -> None:
    given = settings(output=name)
    assert (chosen(given).strict, readable(given).strict) == (True, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("code", "calls"), [(11, 3), (1, 1), (10, 1), (12, 1)])
def test_discard_tries_again_only_while_the_repository_is_locked(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, calls: int
) -> None:
    monkeypatch.setattr(restic_repository, "DISCARD_PAUSES", (0.001, 0.001))
    fake = tmp_path / "fake-restic"
    fake.write_text(f"#!/bin/sh\necho call >>{tmp_path}/calls\nexit {code}\n")
    fake.chmod(0o700)
    with raises(f"restic snapshots failed with exit code {code}") as caught:
        Restic(repository.program(str(fake))).discard([PointId(RUN, UUID)], wait_if_busy=True)
    assert caught.value.transient == (code in (1, 11))
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


def test_the_manifest_is_complete_before_restic_starts(repository: Repository, tmp_path: Path) -> None:
    fake = tmp_path / "fake-restic"
    fake.write_text(
        "#!/bin/sh\n"
        f"case $(readlink /proc/self/fd/0) in *memfd*) cat >{tmp_path}/manifest ;; *) exit 9 ;; esac\n"
        f'echo "{{\\"message_type\\": \\"summary\\", \\"snapshot_id\\": \\"1\\", \\"data_added\\": 1, '
        f'\\"total_bytes_processed\\": $(wc -c <{tmp_path}/manifest)}}"\n'
    )
    fake.chmod(0o700)
    output = Restic(repository.program(str(fake)))
    output.save_manifest(restore_point(domain()), Spool(DATA), JobOnPaper())
    assert (tmp_path / "manifest").read_bytes() == DATA
    fake.write_text(fake.read_text().replace("cat >", "head -c 5 >"))
    with raises(f"restic saved 5 of the {len(DATA)} bytes that were sent"):
        output.save_manifest(restore_point(domain()), Spool(DATA), JobOnPaper())


def test_a_later_attempt_and_the_locks_places_are_in_the_tags() -> None:
    point = restore_point(domain())
    assert not [word for word in named(point) if "attempt" in word or "lock" in word]
    words = named(replace(point, attempt=2, locks=("fsid/vms/", "fsid/a,b/")))
    assert {"--tag=attempt=2", "--tag=lock=fsid/vms/", "--tag=lock=fsid/a%2Cb/"} <= set(words)


def test_a_restore_point_that_lacks_images_is_withdrawn_with_its_manifest(repository: Repository) -> None:
    output = Restic(repository.program())
    source = MemorySource(MemorySnapshot(MIB, {0: DATA[:1000]}), rbd_disk("vda", "vms/a"))
    for run_id in ("20240101T000000Z-good", "20240102T000000Z-lack"):
        output.save(replace(restore_point(domain(disks=[source.disk])), run=run_id), [source], JobOnPaper())
    output.withdraw([PointId("20240102T000000Z-lack", UUID)])
    assert [point.id.run for point in output.restore_points()] == ["20240101T000000Z-good"]


def test_images_of_a_failed_attempt_are_removed_even_if_the_next_one_is_complete(
    repository: Repository,
) -> None:
    output = Restic(repository.program())
    source = MemorySource(MemorySnapshot(MIB, {0: DATA[:1000]}), rbd_disk("vda", "vms/a"))
    tags = ("--tag=virt-rbd-backup", f"--tag=run={RUN}", f"--tag=uuid={UUID}", "--host=web")
    with repository.program().backup((*tags, "--stdin-filename=vda.img"), lambda: None) as backup:
        backup.sink.write(b"of the first attempt")
    (image,) = output.save(
        replace(restore_point(domain(disks=[source.disk])), attempt=2), [source], JobOnPaper()
    )
    assert [point.id for point in incomplete(output.ready())] == [PointId(RUN, UUID)]
    output.discard([PointId(RUN, UUID)], wait_if_busy=False)
    (left,) = output.ready()
    assert (left.id, [one.restore_id[:8] for one in left.images]) == (
        PointId(RUN, UUID, 2),
        [image.restore_id[:8]],
    )


@pytest.fixture
def slow(repository: Repository, tmp_path: Path) -> Restic:
    """A repository whose host is slow."""
    fake = tmp_path / "slow-restic"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *version*) echo "restic 0.14.0"; exit ;; esac\nsleep 1; echo "[]"\n'
    )
    fake.chmod(0o700)
    return Restic(repository.program(str(fake)))


def test_listing_may_take_as_long_as_a_backup_may_stall(
    slow: Restic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restic_process, "CALL_LIMIT", 0.1)
    assert slow.ready() == []
    assert slow.problems() == []
    assert slow.last_saved(UUID) is None
    slow.discard([PointId(RUN, UUID)], wait_if_busy=False)
    impatient = replace(slow, program=replace(slow.program, stall_timeout=0.2))
    with raises("restic snapshots took more than 0 s") as caught:
        impatient.ready()
    assert caught.value.transient
    assert "OUTPUT_STALL_TIMEOUT" in caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda output, check_stop: output.ready(check_stop=check_stop),
        lambda output, check_stop: output.problems(check_stop=check_stop),
        lambda output, check_stop: output.last_saved(UUID, check_stop=check_stop),
        lambda output, check_stop: output.discard([PointId(RUN, UUID)], True, check_stop=check_stop),
    ],
)
def test_a_stop_is_heard_at_once_while_the_repository_is_waited_for(slow: Restic, call: Any) -> None:
    stop = StopRequest()
    threading.Timer(0.3, stop.request, [Interrupted("interrupted", 15)]).start()
    Path(slow.program.binary).write_text(
        Path(slow.program.binary).read_text().replace("sleep 1;", "trap '' INT; sleep 100;")
    )
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        call(slow, stop.check)
    assert time.monotonic() - began < 5
