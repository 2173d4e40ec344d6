"""backup/worker.py: what a worker process has to say, on its way to the main process."""

from __future__ import annotations

import multiprocessing

import pytest

from backup import throttle
from backup.model import Level
from backup.worker import Message, PipeReporter, Progress


def test_every_message_is_sent_but_progress_only_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr(throttle, "PROGRESS_INTERVAL", 0)
        reporter = PipeReporter(theirs)
        for done in range(3):
            reporter.progress("web", "vda", done, 9)
        assert [ours.recv().done for _ in range(3)] == [0, 1, 2]


def test_a_main_process_that_is_gone_does_not_keep_a_worker_from_cleaning_up() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    ours.close()
    with theirs:
        PipeReporter(theirs).message(Level.INFO, "web", "thawed")
