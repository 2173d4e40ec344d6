"""Words that messages, help and the manual do not use, each with the word to use in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# Names of constants and JSON keys (UNCOVERED_DISKS, not_covered) do not match: "_" is part of a word.
RETIRED: Mapping[str, str] = {
    r"st(?:and|ands|ood|anding) still": "frozen, paused, quiesced",
    r"h[eo]lds? .{0,20}\bstill": "freeze, pause, quiesce",
    r"let(?:s|ting)? (?:\w+ )?go": "thaw, resume, release",
    r"killed (?:run|backup)s?(?: had)? left": "leftovers of interrupted runs",
    r"(?:run|backup)s? that (?:was|were) killed": "interrupted run",
    r"kept snapshots?|snapshots? (?:is|are) kept|was kept for": "base snapshot, previous backup",
    r"read(?:s|ing)? (?:\w+ )?as a whole": "full read",
    r"reads? only (?:changes|what has changed since)|reading only changes": "incremental",
    r"passing|patien(?:ce|t|tly)": "transient, retry, timeout",
    r"tried once more|tries on": "retry",
    r"tells?|told|telling|says?|said|saying|noted": "report, log, record, print, show",
    r"look(?:s|ed|ing)? (?:at|whether)": "check, list, inspect",
    r"put(?:s|ting)? right|what to mend|mend(?:s|ed|ing)?|way out": "fix, hint",
    r"not covered|uncovered|(?:can't|cannot|could not) be had": "skipped, not backed up",
    r"c[ao]mes? back|coming back|br(?:ing|ings|ought) .{0,30}\bback": "restore, restorable",
    r"ha(?:ve|s) (?:it|them|a lost domain) (?:back|again)": "restore",
    r"words?": "output, message, argument",
    r"at work": "active, running",
    r"who(?:m|ever|mever)": "a name",
    r"nobody was notified": "notification failed",
    r"ha(?:s|ve) no use for": "unknown option",
    r"c[ao]me of|comes of|came to be": "result",
}

_PATTERN = re.compile(r"\b(?:" + "|".join(f"(?:{one})" for one in RETIRED) + r")\b", re.IGNORECASE)


def retired_in(text: str) -> Iterator[str]:
    """Yield what of the text is retired, with its line's number."""
    for found in _PATTERN.finditer(text.replace("\n", " ")):
        yield f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
