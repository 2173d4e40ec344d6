"""The repository's password: where it comes from, whether others can read it, and how random it is."""

from __future__ import annotations

import os
import re
import stat
import string
from base64 import b32decode, b64decode, urlsafe_b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import combinations, product
from math import ceil, log2, sqrt
from pathlib import Path
from typing import Callable

from backup.errors import BackupError, reason

from .program import Program

FEWEST_BITS = 128  # for a fast key

# How programs write random bits: the form of the whole password, and the characters that they draw from.
_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
FORMS: Mapping[str, str] = {
    r"[0-9a-f]+": "0123456789abcdef",
    r"[0-9A-F]+": "0123456789ABCDEF",
    r"[a-z2-7]+=*": string.ascii_lowercase + "234567",  # base32
    r"[A-Z2-7]+=*": string.ascii_uppercase + "234567",
    r"[A-Za-z0-9]+={0,2}": _LETTERS_AND_DIGITS,
    r"[A-Za-z0-9+/]+={0,2}": f"{_LETTERS_AND_DIGITS}+/",  # base64
    r"[A-Za-z0-9_-]+={0,2}": f"{_LETTERS_AND_DIGITS}-_",  # base64url
}
# Of a random UUID (RFC 4122, version 4) two characters are given, and left out: it has 122 random bits.
UUID = re.compile("([0-9a-f]{8})-([0-9a-f]{4})-4([0-9a-f]{3})-[89ab]([0-9a-f]{3})-([0-9a-f]{12})-?")
REPEATED_BITS = 24  # characters with as many do not come twice by chance

# What passwords that a person made have more of: pairs as in words (with digits for letters too), of one kind
# (two small letters), neighbours in the alphabet or on a keyboard, and the same characters again and again.
COMMON = frozenset(
    re.findall(
        "..",
        "abacadaialamanaparasatbeblcacechckclcoctdadedieaecedeeelemeneperesetexfigehahehoiaibicidieigiliminio"
        "irisitkelalelillloltmamemimompnancndnengninonsntocodolomonoporosotoupapeplpoprrarerirorsrtsascseshsi"
        "slsossstsutatethtitotrtsttulunurusutvevi",
    )
)
FOR_LETTERS = str.maketrans("013457", "oieast")
ORDERS = (
    string.ascii_lowercase,
    string.digits,
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
)
# By how many standard deviations one of these, and all together, may exceed what is expected of random
# characters in the shortest password; a longer one of a person exceeds it by more, a random one does not.
MOST, MOST_TOGETHER = 4.0, 6.5

Pair = tuple[str, ...]


def random_bits(password: str) -> float:
    """Return how many random bits a password has that a program drew, 0 if a person may have made it.

    One in 200 random passwords of 128 bits is taken for a person's too, of 256 bits one in 1,000.
    """
    drawn = UUID.sub(r"\1\2\3\4\5", password)
    alphabet = next((chars for form, chars in FORMS.items() if re.fullmatch(form, drawn)), "")
    drawn = drawn.rstrip("=")
    if not alphabet or len(drawn) < 2 or _is_encoded_text(password):
        return 0
    bits = log2(len(alphabet))
    if _repeats(drawn, ceil(REPEATED_BITS / bits)) or _made_by_a_person(drawn, alphabet):
        return 0
    return bits * len(drawn)


def _is_encoded_text(password: str) -> bool:
    """Return whether it is readable text in base64 or base32: of random bytes hardly ever is."""
    letters, padding = password.rstrip("="), "=" * (-len(password.rstrip("=")) % 8)
    for decode in (urlsafe_b64decode, b64decode, b32decode):
        text = letters.upper() if decode is b32decode else letters
        with suppress(ValueError):
            if decode(text + padding).decode().strip().isprintable():
                return True
    return False


def _repeats(text: str, length: int) -> bool:
    parts = [text.lower()[at : at + length] for at in range(len(text) - length + 1)]
    return len(parts) != len(set(parts))


def _made_by_a_person(text: str, alphabet: str) -> bool:
    neighbours = list(zip(text, text[1:]))
    excess = [_excess(neighbours, trait, alphabet) for trait in (_is_common, _of_one_kind, _in_order)]
    excess.append(_excess(list(combinations(text, 2)), _same, alphabet))
    longer = sqrt(log2(len(alphabet)) * len(text) / FEWEST_BITS)
    return max(excess) > MOST * longer or sum(excess) > MOST_TOGETHER * longer


def _excess(pairs: Sequence[Pair], trait: Callable[[Pair], bool], alphabet: str) -> float:
    """Return by how many standard deviations more pairs have the trait than random ones would."""
    expected = _share(trait, alphabet)
    deviation = sqrt(len(pairs) * expected * (1 - expected))
    return (sum(map(trait, pairs)) - len(pairs) * expected) / deviation


@cache
def _share(trait: Callable[[Pair], bool], alphabet: str) -> float:
    """Return the share of random pairs with the trait."""
    return sum(map(trait, product(alphabet, repeat=2))) / len(alphabet) ** 2


def _is_common(pair: Pair) -> bool:
    return "".join(pair).lower().translate(FOR_LETTERS) in COMMON


def _of_one_kind(pair: Pair) -> bool:
    one, other = ((char.isupper(), char.islower()) for char in pair)
    return one == other


def _in_order(pair: Pair) -> bool:
    one, other = (char.lower() for char in pair)
    return any(one + other in order or other + one in order for order in ORDERS)


def _same(pair: Pair) -> bool:
    return pair[0] == pair[1]


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


def password_file_errors(path: Path, constant: str = "RESTIC_PASSWORD_FILE") -> list[BackupError]:
    """Return what prevents the use of the file that a constant names, or lets others read it."""
    try:
        status = path.stat()
        empty = not path.read_bytes().strip()
    except OSError as error:
        return [BackupError(f"{constant} {path}: {reason(error)}", "write the repository's password into it")]
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (0, os.geteuid()):
        mode = f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}"
        return [BackupError(f"{constant} {path} has unsafe permissions ({mode})", f"chmod 0600 {path}")]
    if empty:
        return [BackupError(f"{constant} {path} is empty", "write the repository's password into it")]
    return []
