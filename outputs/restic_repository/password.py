"""The repository's password: where it comes from, and how random it is."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from backup.errors import BackupError, reason

from .program import Program

# What random passwords look like, and the random bits in each of their characters. What fits none of these is
# taken for words.
HEX, BASE32 = r"[0-9a-f]+|[0-9A-F]+", r"(?=.*[2-7])[A-Z2-7]+=*"
MIXED = r"(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])[!-~]+"  # base64, and others from letters and digits
FORMS: Mapping[str, float] = {HEX: 4.0, BASE32: 5.0, MIXED: 5.95}
WORD = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{4,}")
WORD_BITS = 12.9  # a random one of 7,776 words, the usual length of a list to draw from
MOSTLY = (
    0.55  # of the characters; of 1,000 random passwords in base64, ten have more in what looks like words
)
FEWEST_REPEATED = 6  # characters that come twice: in random ones that is less likely than 1 in 1,000


def random_bits(password: str) -> float:
    """Return about how many random bits a password has, if it was made by a program.

    Patterns and repetitions have none. Words count as those of a list to draw from.
    """
    if _repeats(password) or _counts_up(password):
        return 0
    found = WORD.findall(password)
    form = next((form for form in FORMS if re.fullmatch(form, password)), "")
    if form in (HEX, BASE32) or (form and len("".join(found)) < MOSTLY * len(password)):
        return FORMS[form] * len(password.rstrip("="))
    return WORD_BITS * len(set(found))


def _repeats(password: str) -> bool:
    parts = [password[at : at + FEWEST_REPEATED] for at in range(len(password) - FEWEST_REPEATED + 1)]
    return len(parts) != len(set(parts))


def _counts_up(password: str) -> bool:
    """Return whether most characters follow from the one before: abcd, 4321, aaaa."""
    steps = [abs(ord(one) - ord(other)) <= 1 for one, other in zip(password, password[1:])]
    return sum(steps) > 0.5 * len(steps)


def password_of(program: Program) -> str:
    """Return the repository's password, from where restic takes it. Raises BackupError."""
    given = program.environment
    if "RESTIC_PASSWORD_COMMAND" in given:  # restic prefers it to the others
        message = "the password comes from RESTIC_PASSWORD_COMMAND, which is run by restic alone"
        raise BackupError(
            message, "for this once, use a --config whose RESTIC_PASSWORD_FILE has what it prints"
        )
    if path := given.get("RESTIC_PASSWORD_FILE", program.password_file):
        try:
            return Path(path).read_text(errors="surrogateescape").strip()
        except OSError as error:
            raise BackupError(f"cannot read RESTIC_PASSWORD_FILE {path}: {reason(error)}") from error
    return given.get("RESTIC_PASSWORD", "")


def password_file_errors(path: Path) -> list[BackupError]:
    """Return what is wrong with the password's file: it is missing, empty, or has unsafe permissions."""
    try:
        status = path.stat()
        empty = not path.read_bytes().strip()
    except OSError as error:
        return [
            BackupError(
                f"RESTIC_PASSWORD_FILE {path}: {reason(error)}", "write the repository's password into it"
            )
        ]
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (0, os.geteuid()):
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
        return [
            BackupError(f"RESTIC_PASSWORD_FILE {path} has unsafe permissions ({mode})", f"chmod 0600 {path}")
        ]
    if empty:
        return [
            BackupError(f"RESTIC_PASSWORD_FILE {path} is empty", "write the repository's password into it")
        ]
    return []
