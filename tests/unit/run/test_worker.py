"""backup/run/worker.py: the messages of a worker process on their way to the main process."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup.job_result import Phase
from backup.model import Level
from backup.run.worker import SHOW_STACKS, Message, PipeReporter, Progress, work
from backup.system import progress_interval
from backup.system.process import SPAWN

from ..jobs_on_paper import NoOutput
from ..samples import settings
from ..waiting import wait_until, waits_for_nobody


def test_every_message_is_sent_but_progress_only_twice_a_second_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, theirs:
        reporter = PipeReporter(theirs)
        for done in range(3):
            reporter.message(Level.INFO, "web", str(done))
            reporter.progress("web", "vda", done, 9)
        sent = [ours.recv() for _ in range(4)]
        assert [one.text for one in sent if isinstance(one, Message)] == ["0", "1", "2"]
        assert [one for one in sent if isinstance(one, Progress)] == [Progress("web", "vda", 0, 9)]
        assert not ours.poll()
        reporter.progress("web", "vda", 9, 9)
        assert ours.recv() == Progress("web", "vda", 9, 9)
        monkeypatch.setattr(progress_interval, "STEP", 0)
        reporter = PipeReporter(theirs)
        for done in range(3):
            reporter.progress("web", "vda", done, 9)
        assert [ours.recv().done for _ in range(3)] == [0, 1, 2]


def test_messages_of_several_threads_arrive_complete() -> None:
    ours, theirs = multiprocessing.Pipe()
    texts = [letter * 100_000 for letter in "abcdefgh"]  # more than is written in one go
    with ours, theirs, ThreadPoolExecutor(len(texts)) as threads:
        reporter = PipeReporter(theirs)
        for text in texts:
            threads.submit(reporter.message, Level.INFO, "web", text)
        assert sorted(ours.recv().text for _ in texts) == texts


def test_a_main_process_that_is_gone_does_not_keep_a_worker_from_cleaning_up() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ours.close()
    with theirs:
        PipeReporter(theirs).message(Level.INFO, "web", "thawed")


@pytest.mark.parametrize("duplex", [True, False])
def test_a_main_process_that_does_not_read_delays_no_stream_and_gets_every_message_later(
    duplex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_interval, "STEP", 0)
    ours, theirs = multiprocessing.Pipe(duplex)
    with ours, theirs:
        reporter = PipeReporter(theirs)

        def stream() -> None:
            for done in range(20_000):  # many times what the pipe holds
                reporter.progress("web", "vda", done, 20_000)
            reporter.message(Level.INFO, "web", "saved")

        waits_for_nobody(stream)
        received = []
        while ours.poll():
            received.append(ours.recv())
        assert received[0] == Progress("web", "vda", 0, 20_000)
        assert received[-1] == Message(Level.INFO, "web", "saved")
        assert 10 < len(received) < 20_000, "as many as there was room for"
        reporter.progress("web", "vda", 20_000, 20_000)
        assert ours.recv() == Progress("web", "vda", 20_000, 20_000), "it has room again"


def test_the_progress_of_each_image_is_reported_as_often_as_that_of_a_single_one() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, theirs:
        reporter = PipeReporter(theirs)
        for target in ("vda", "vdb", "vda", "vdb"):
            reporter.progress("web", target, 1, 9)
        assert [ours.recv(), ours.recv()] == [Progress("web", "vda", 1, 9), Progress("web", "vdb", 1, 9)]
        assert not ours.poll(0), "twice a second is enough"


def test_the_process_title_shows_the_phase() -> None:
    titles: list[str] = []
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, theirs:
        reporter = PipeReporter(theirs, titles.append)
        reporter.phase("web", Phase.STREAM, 60)
        for target, done in (("vda", 1), ("vda", 2), ("vdb", 1), ("vda", 9), ("vdb", 9), ("", 1)):
            reporter.progress("web", target, done, 9)
        reporter.phase("web", Phase.TIDY, 60)
    assert titles == [
        "web: streaming",
        "web: streaming vda",
        "web: streaming vda vdb",
        "web: streaming vdb",
        "web: streaming",
        "web: tidying up",
    ]


def test_a_worker_that_has_to_show_its_stacks_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = SPAWN.Pipe()
    with ours, theirs:
        worker = SPAWN.Process(target=work, args=(settings(), NoOutput(), theirs, os.getpid(), theirs))
        worker.start()
        command = Path(f"/proc/{worker.pid}/cmdline")
        wait_until(lambda: b"virt-rbd-backup: worker" in command.read_bytes(), 10, "it waits for an order")
        assert worker.pid
        os.kill(worker.pid, SHOW_STACKS)
    worker.join(20)
    assert worker.exitcode == 0, "without an order"
    assert "worker.py" in capfd.readouterr().err


TITLED = """
from backup.system.process_title import set_title
set_title("web\\n: streaming")
print(*(open(f"/proc/self/{name}").read().replace(chr(0), "|") for name in ("cmdline", "environ")), sep="END")
"""


def test_a_title_takes_the_arguments_place_and_leaves_the_environment_as_it_was() -> None:
    environment = {"A_NAME": "a value", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", TITLED],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    line, variables = done.stdout.split("END")
    assert line.rstrip("|") == "virt-rbd-backup: web\\n: streaming"
    assert variables.rstrip("|\n").split("|") == [f"{name}={value}" for name, value in environment.items()]
