"""backup/hooks/notify.py: which runs are notified, and what happens if that fails."""

from __future__ import annotations

import _thread
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from email import message_from_string, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from backup.errors import Interrupted
from backup.hooks import notify
from backup.hooks.notify import changed, send_notifications
from backup.job_result import JobResult, Status
from backup.model import Level
from backup.report.report_types import Report
from backup.report.run_report import RunResult, report_json

from ..listening import Web, mail_server, web_server
from ..recorder import Recorder
from ..samples import OTHER_UUID, RUN, TAKEN, UUID, settings

RES = Path(__file__).parents[3] / "res"
SAVED = JobResult("web", UUID, Status.SAVED)
FAILED = replace(SAVED, status=Status.FAILED, reason="the repository is full")
SKIPPED = replace(SAVED, status=Status.SKIPPED)
DB_SAVED, DB_FAILED = (replace(one, name="db", uuid=OTHER_UUID) for one in (SAVED, FAILED))
DARK = {"errors": ["cannot connect to libvirt at qemu:///system"]}


def result_of(*results: JobResult, **changes: Any) -> RunResult:
    return RunResult(RUN, "node1", TAKEN, TAKEN, results, **changes)


def report_of(*results: JobResult, **changes: Any) -> Report:
    """Return a report as it is when it is read back."""
    report: Report = json.loads(json.dumps(report_json(result_of(*results, **changes), {})))
    return report


@pytest.mark.parametrize(
    ("report", "previous", "expected"),
    [
        (report_of(SAVED), [], False),
        (report_of(FAILED), [], True),
        (report_of(SAVED), [report_of(SAVED)], False),
        (report_of(FAILED), [report_of(SAVED)], True),
        (report_of(FAILED), [report_of(FAILED)], False),
        (report_of(SAVED), [report_of(FAILED)], True),
        (report_of(FAILED, DB_SAVED), [report_of(SAVED, DB_FAILED)], True),
        (report_of(SAVED, DB_FAILED), [report_of(SAVED)], True),
        (report_of(SAVED), [report_of(SAVED, DB_FAILED)], False),
        # a domain's last time is its own: another one was saved in between, or it was skipped
        (report_of(SAVED, DB_FAILED), [report_of(SAVED), report_of(SAVED, DB_FAILED)], False),
        (report_of(SAVED, DB_SAVED), [report_of(SAVED), report_of(SAVED, DB_FAILED)], True),
        (report_of(SKIPPED), [report_of(FAILED)], False),
        (report_of(FAILED), [report_of(SKIPPED), report_of(FAILED)], False),
        # what is no domain's own
        (report_of(SAVED, **DARK), [report_of(SAVED)], True),
        (report_of(SAVED, **DARK), [report_of(SAVED, **DARK)], False),
        (report_of(SAVED), [report_of(SAVED, **DARK)], True),
        (report_of(nothing_done=True), [], True),
        (report_of(nothing_done=True), [report_of(nothing_done=True)], False),
        (report_of(signal_number=15), [report_of(SAVED)], True),
        (report_of(SAVED, DB_SAVED), [report_of(SAVED), report_of(SAVED, **DARK)], False),
    ],
)
def test_a_change_is_a_new_failure_or_a_recovery(
    report: Report, previous: Sequence[Report], expected: bool
) -> None:
    assert changed(report, previous) is expected


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that stores its input."""
    path = tmp_path / "notify"
    path.write_text(f"#!/bin/sh\ncat >>{tmp_path}/report; env >{tmp_path}/environment; echo sent $1\n")
    path.chmod(0o700)
    return path


def received(directory: Path) -> list[Mapping[str, Any]]:
    """Return the reports that the program received."""
    text, found = (directory / "report").read_text() if (directory / "report").exists() else "", []
    while text.strip():
        report, end = json.JSONDecoder().raw_decode(text.lstrip())
        found.append(report)
        text = text.lstrip()[end:]
    return found


def notify_of(result: RunResult, previous_reports: Any = (), **constants: Any) -> Recorder:
    recorder = Recorder()
    report = report_json(result, {})
    send_notifications(result, report, previous_reports, settings(**constants), recorder, lambda: None)
    return recorder


def test_a_program_gets_the_report_and_a_few_variables(tmp_path: Path, program: Path) -> None:
    recorder = notify_of(result_of(SAVED, DB_FAILED), notify_command=[str(program), "to me"])
    assert received(tmp_path) == [report_of(SAVED, DB_FAILED)]
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    ours = {name[16:]: value for name, value in environment.items() if name.startswith("VIRT_RBD_BACKUP_")}
    assert ours == {
        "RUN": RUN,
        "HOST": socket.gethostname(),
        "EXIT_CODE": "3",
        "SUMMARY": "1 saved, 1 failed",
    }
    assert recorder.messages == [(Level.DEBUG, "", f"{program}: sent to me")]


@pytest.mark.parametrize(
    ("notify_on", "of"),
    [("always", [SAVED, FAILED]), ("failure", [FAILED]), ("change", [SAVED])],
)
def test_notifications_are_sent_according_to_notify_on(
    tmp_path: Path, program: Path, notify_on: str, of: Sequence[JobResult]
) -> None:
    before = {**report_of(FAILED), "run": "20240101T000000Z-aaaa"}
    for one in (SAVED, FAILED):
        # this run's own report is stored by then
        previous_reports = [report_of(one), before]
        notify_of(result_of(one), previous_reports, notify_command=[str(program)], notify_on=notify_on)
    assert received(tmp_path) == [report_of(one) for one in of]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "echo no route to host; exit 1",
            "notification failed: {} failed with exit code 1: no route to host",
        ),
        ("sleep 1000", "notification failed: {} took more than 4 s and was ended"),
    ],
)
def test_a_failed_program_is_reported_and_the_ping_is_sent(
    program: Path, web: Web, line: str, error: str
) -> None:
    program.write_text(f"#!/bin/sh\n{line}\n")
    recorder = notify_of(
        result_of(FAILED), notify_command=[str(program)], notify_timeout=4, ping_url=f"{web.url}/x"
    )
    assert recorder.told(Level.ERROR) == [error.format(program)]
    assert len(web.asked) == 1


def test_a_second_signal_ends_the_notifications(program: Path, web: Web) -> None:
    def insisted() -> None:
        raise Interrupted("interrupted", 2)

    recorder = Recorder()
    result = result_of(FAILED)
    chosen = settings(notify_command=[str(program)], ping_url=web.url)
    send_notifications(result, report_json(result, {}), (), chosen, recorder, insisted)
    assert recorder.told(Level.ERROR) == ["notification failed: interrupted"]
    assert web.asked == []


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(notify, "PING_PAUSE", 0.001)
    with web_server() as web:
        yield web


@pytest.mark.parametrize(
    ("result", "url", "path", "body"),
    [
        (result_of(SAVED), "/ping/1", "/ping/1", "1 saved"),
        (result_of(), "/ping/1", "/ping/1", "nothing to do"),
        (result_of(SAVED, FAILED), "/ping/1/", "/ping/1/fail", "1 saved, 1 failed"),
        (result_of(nothing_done=True), "/ping/1?create=1", "/ping/1/fail?create=1", "nothing could be done"),
        (result_of(SAVED, signal_number=15), "", "/fail", "1 saved"),
    ],
)
def test_the_monitoring_gets_a_ping_for_each_run_with_its_outcome(
    web: Web, result: RunResult, url: str, path: str, body: str
) -> None:
    assert notify_of(result, ping_url=web.url + url).messages == []
    assert web.asked == [("POST", path, f"node1: run {RUN}: {body}")]


def test_a_ping_to_a_busy_monitoring_is_retried(web: Web) -> None:
    web.statuses = [503, 500, 200]
    assert notify_of(result_of(SAVED), ping_url=web.url).messages == []
    assert len(web.asked) == 3


def test_a_ping_for_which_no_thread_can_be_started_is_a_warning(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", none_left)
        recorder = notify_of(result_of(SAVED), ping_url=web.url)
    warning = "cannot ping 127.0.0.1: can't start new thread (hint: see PING_URL)"
    assert recorder.messages == [(Level.WARNING, "", warning)]


@pytest.mark.parametrize(("status", "times"), [(404, 1), (503, 3)])
def test_a_refused_ping_is_a_warning_without_the_url(web: Web, status: int, times: int) -> None:
    web.statuses = [status]
    recorder = notify_of(result_of(SAVED), ping_url=f"{web.url}/hunter2")
    warning = f"cannot ping 127.0.0.1: HTTP status {status} (hint: see PING_URL)"
    assert recorder.messages == [(Level.WARNING, "", warning)]
    assert len(web.asked) == times


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "remote end closed connection without response"),
        (b"hunter2\r\n\r\n", "no answer in HTTP"),
        (None, "no answer within 5 s"),
    ],
)
def test_an_answer_that_is_no_http_is_a_warning_too(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, why: str
) -> None:
    monkeypatch.setattr(notify, "PING_TRIES", 1)
    monkeypatch.setattr(notify, "PING_TIMEOUT", 5)
    with other_server(answer) as port:
        recorder = notify_of(result_of(SAVED), ping_url=f"http://127.0.0.1:{port}/hunter2")
    assert recorder.told(Level.WARNING) == [f"cannot ping 127.0.0.1: {why} (hint: see PING_URL)"]


def test_a_refused_connection_is_a_warning_too(web: Web) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = "http://127.0.0.1:{1}/hunter2".format(*unused.getsockname())
        recorder = notify_of(result_of(SAVED), ping_url=url)
    assert recorder.told(Level.WARNING) == ["cannot ping 127.0.0.1: connection refused (hint: see PING_URL)"]


def test_res_has_a_program_that_mails_the_report() -> None:
    failed = replace(FAILED, name="straße", reason="saved, but\nhook after-thaw.d/x failed")
    with mail_server() as mail:
        command = [str(RES / "notify-mail"), f"--server={mail.address}", "me@example.org", "you@example.org"]
        recorder = notify_of(result_of(SAVED, failed), notify_command=command)
    assert recorder.told(Level.ERROR) == []
    lines = [line.lower() for line in mail.lines]  # some versions of smtplib shout
    assert {"rcpt to:<me@example.org>", "rcpt to:<you@example.org>"} <= set(lines)
    begin, end = lines.index("data"), lines.index(".")
    message = message_from_string("\n".join(mail.lines[begin + 1 : end]), policy=policy.default)
    assert message["Subject"] == "backup on node1: 1 saved, 1 failed"
    assert isinstance(message, EmailMessage)
    assert message.get_content().splitlines()[2:] == [
        "failed: straße: saved, but",
        "hook after-thaw.d/x failed",
        "saved: web",
    ]


def test_res_has_a_program_that_posts_to_a_webhook(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    command = [str(RES / "notify-webhook"), str(secret)]
    with web_server() as web:
        secret.write_text(f"{web.url}/hooks/hunter2\n")
        assert notify_of(result_of(SAVED, DB_FAILED, **DARK), notify_command=command).told(Level.ERROR) == []
        ((method, path, body),) = web.asked
        assert (method, path) == ("POST", "/hooks/hunter2")
        assert json.loads(body) == {
            "text": "backup on node1: 1 saved, 1 failed\n"
            "cannot connect to libvirt at qemu:///system\n"
            "db: the repository is full"
        }
        web.statuses = [500]
        (error,) = notify_of(result_of(FAILED), notify_command=command).told(Level.ERROR)
        assert "Internal Server Error" in error
        secret.write_text("hunter2")
        (other,) = notify_of(result_of(FAILED), notify_command=command).told(Level.ERROR)
    assert "hunter2" not in error + other


@contextmanager
def other_server(answer: bytes | None) -> Iterator[int]:
    """Run a server that gives each request the same answer, or none."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            with listening.accept()[0] as asking:
                if answer is None:
                    ended.wait()
                    return
                asking.recv(1 << 16)
                asking.sendall(answer)

        ended = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            thread.join()
