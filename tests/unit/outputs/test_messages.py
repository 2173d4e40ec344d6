"""outputs/restic_repository/messages.py: which failures are transient, and which permanent."""

from __future__ import annotations

import pytest

from outputs.restic_repository.messages import ResticError, failure, is_damage

GONE = "ReadFull(<data/55c9d25d8b>): open /srv/r/data/55/55c9: no such file or directory"


def failed(code: int, printed: str) -> ResticError:
    return failure("backup", code, printed, printed.strip())


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (-9, ""),
        (1, ""),
        (3, ""),
        (1, "Save(<data/1d5e>) returned error, retrying after 1s: connection lost"),
        (1, "subprocess ssh: client_loop: send disconnect: Broken pipe"),
        (1, "Fatal: unable to open config file: Stat: dial tcp 10.0.0.1:8000: connect: connection refused"),
        (1, "ssh: connect to host nas port 22: No route to host"),
        (1, "ssh: Could not resolve hostname nas: Temporary failure in name resolution"),
        (1, "server response unexpected: 503 Service Unavailable"),
        (1, "write /srv/r/tmp: input/output error"),
        (1, "Save(<data/1d5e>): open /srv/r/data/1d/1d5e-tmp: no such file or directory"),
        (1, GONE),
        (
            1,
            "update_known_hosts: hostfile_replace_entries failed for /root/.ssh/known_hosts: "
            "Read-only file system\nclient_loop: send disconnect: Broken pipe",
        ),
        (1, "Could not create directory '/root/.ssh' (Read-only file system).\nconnection lost"),
        (1, "unable to open cache: mkdir /root/.cache: permission denied\nconnection lost"),
        (11, ""),
        (1, "unable to create lock in backend: repository is already locked by PID 7 on nas"),
    ],
)
def test_transient_errors(code: int, printed: str) -> None:
    assert failed(code, printed).transient


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (10, ""),
        (12, ""),
        (127, "env: 'restic': No such file or directory"),
        (1, "Fatal: wrong password or no key found"),
        (1, "Fatal: unable to open config file: stat /nowhere/config: no such file or directory"),
        (1, "Fatal: unable to open config file: Stat: The specified key does not exist."),
        (1, "Save(<data/1d5e>) returned error: write /srv/r/tmp-1: no space left on device"),
        (1, "Save(<lock/1d5e>): open /srv/r/locks/1d5e: read-only file system"),
        (1, "open /srv/r/locks/1d5e: permission denied"),
        (1, "unable to open cache: mkdir /r: permission denied\nopen /srv/r/locks/1d5e: permission denied"),
        (1, "write /srv/r/tmp-1: disk quota exceeded"),
        (1, "client.PutObject: Access Denied."),
        (1, "config cannot be loaded: unsupported repository version"),
        (1, "unknown flag: --no-such"),
    ],
)
def test_permanent_errors(code: int, printed: str) -> None:
    assert not failed(code, printed).transient


@pytest.mark.parametrize(
    "printed",
    [
        GONE,
        "decrypting blob 80f6 failed: ciphertext verification failed",
        'loading tree for snapshot "85aa" failed: id 80f6 not found in repository',
        'invalid id "abcdef": no matching ID found for prefix "abcdef"',
        'cannot dump file: path "/~definition.tar" not found in snapshot',
    ],
)
def test_missing_and_corrupt_data_counts_as_damaged(printed: str) -> None:
    assert failed(1, printed).damaged
    assert not failed(1, "connection lost").damaged
    assert not failed(1, "Save(<data/1d5e>): open /srv/r/data/1d/1d5e: no such file or directory").damaged


def test_the_error_names_the_lock_s_owner_and_what_to_do_if_it_is_dead() -> None:
    words = "repository is already locked exclusively by PID 7 on nas by root; lock was created at 2024-01-01"
    error = failed(1, words)
    assert error.locked
    assert words in error.message
    assert "`restic unlock`" in error.hint


@pytest.mark.parametrize(
    ("printed", "damaged"),
    [
        (GONE, True),
        (
            "Load(<data/f233>, 1116921, 0) returned error, retrying after 552ms: open /r/f2: no such file",
            True,
        ),
        ("Load(<data/f233>, 1116921, 0) returned error, retrying after 552ms: connection refused", False),
        ("", False),
    ],
)
def test_lost_data_is_known_while_restic_still_retries(printed: str, damaged: bool) -> None:
    assert is_damage(printed) is damaged
