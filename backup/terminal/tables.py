"""The tables that commands print, and the same data as values for JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from textwrap import indent
from typing import TYPE_CHECKING, Callable

from ..job_result import JobResult
from ..model import Disk, Finding, Gap
from ..report.domain_record import INSTANT
from ..report.run_report import RunResult
from ..selection import Choice
from ..settings import Settings
from ..stored import RepositoryKey, StoredPoint, is_future
from ..text import one_line, size_text

if TYPE_CHECKING:  # they need modules that only distributions package, and main reports which are missing
    from ..restore.images import RestoredImage
    from ..run.prune import Pruned
    from ..verify.verification import Verified


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give left-aligned columns, two spaces apart."""
    return "".join(table_parts(head, lambda: iter(rows)))


def table_parts(head: Sequence[str], rows: Callable[[], Iterator[Sequence[str]]]) -> Iterator[str]:
    """Yield a table's lines, for one with too many rows for the memory; `rows` yields the same ones twice."""

    def lines() -> Iterator[Sequence[str]]:
        return ([one_line(cell) for cell in row] for row in chain([head], rows()))

    widths = [0] * len(head)
    for line in lines():
        widths = [max(width, len(cell)) for width, cell in zip(widths, line)]
    for line in lines():
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + "\n"


def finding(found: Finding) -> str:
    """Give what was checked, and the problem with its hint if there is one."""
    if found.problem is None:
        return f"{'WARNING ' if found.warning else 'ok      '} {one_line(found.subject)}\n"
    text = f"PROBLEM  {one_line(found.subject)}: {one_line(found.problem.message)}\n"
    return text + (f"         hint: {one_line(found.problem.hint)}\n" if found.problem.hint else "")


def summary(result: RunResult) -> str:
    """Give the run's table, a row per domain, and its result."""
    head = ("domain", "consistency", "frozen", "images", "size", "data", "time", "result")
    rows = [_summary_row(one) for one in result.results]
    seconds = (result.finished - result.started).total_seconds()
    errors = "".join(f"{one_line(error)}\n" for error in result.errors)
    return f"{table(head, rows)}{errors}run {result.run}: {result.summary} in {seconds:.0f} s\n"


def _summary_row(one: JobResult) -> tuple[str, ...]:
    return (
        one.name,
        one.consistency.value if one.consistency else "-",
        f"{one.frozen_seconds:.2f} s" if one.frozen_seconds else "-",
        str(len(one.images)) if one.images else "-",
        size_text(sum(image.size for image in one.images)) if one.images else "-",
        size_text(sum(image.data_bytes for image in one.images)) if one.images else "-",
        f"{one.seconds:.1f} s",
        f"{one.status.value}: {one.reason}" if one.reason else one.status.value,
    )


def listing(choices: Sequence[Choice]) -> str:
    """Give a table of all domains and disks: what applies to each, and which setting decides it."""
    head = ("domain", "state", "freeze", "disk", "source", "backup")
    several = len({choice.domain.uri for choice in choices}) > 1
    rows = []
    for choice in choices:
        domain = choice.domain
        first = (*([domain.uri] if several else []), domain.name, domain.state.value)
        first += (f"{choice.freeze} ({choice.freeze_from})",)
        if domain.problem or not domain.disks:
            rows.append((*first, "", "", _decision(choice)))
            first = ("",) * len(first)
        for disk in domain.disks:
            rows.append((*first, disk.target, disk.source, _disk_decision(choice, disk)))
            first = ("",) * len(first)
    return table((*(["libvirt"] if several else []), *head), rows)


def _decision(choice: Choice) -> str:
    if choice.skipped:
        return f"no: {choice.skipped}"
    if choice.domain.problem:
        return f"FAILS: {choice.domain.problem.message}"
    return f"yes ({choice.selected_by})"


def _disk_decision(choice: Choice, disk: Disk) -> str:
    if choice.skipped or disk.image:
        return _decision(choice)
    return f"{'FAILS' if disk.gap is Gap.BROKEN else 'no'}: {disk.skipped}"


def selection_json(choices: Sequence[Choice]) -> list[dict[str, object]]:
    """Give the same for programs."""
    return [
        {
            "name": choice.domain.name,
            "uuid": choice.domain.uuid,
            "libvirt": choice.domain.uri,
            "state": choice.domain.state.value,
            "selected": not choice.skipped,
            "selected_by": "" if choice.skipped else choice.selected_by,
            "reason": choice.skipped,
            "problem": choice.domain.problem.message if choice.domain.problem else "",
            "freeze": choice.freeze,
            "freeze_from": choice.freeze_from,
            "disks": [
                {
                    "target": disk.target,
                    "source": disk.source,
                    "image": str(disk.image) if disk.image else None,
                    "reason": disk.skipped,
                    "gap": disk.gap.value,
                }
                for disk in choice.domain.disks
            ],
        }
        for choice in choices
    ]


def pruned_table(pruned: Sequence[Pruned], settings: Settings, dry_run: bool) -> str:
    """Give a row per restore point that is not kept, and a line with their number and the limits."""
    limits = f"KEEP_LAST = {settings.keep_last}, KEEP_WITHIN_DAYS = {settings.keep_within_days}"
    if not pruned:
        return f"nothing to remove ({limits})\n"
    rows = [
        (
            one.point.domain,
            f"{one.point.taken:%Y-%m-%d %H:%M:%S}",
            one.point.id.run,
            "would be removed" if dry_run else one.problem.message if one.problem else "removed",
        )
        for one in pruned
    ]
    gone = len(pruned) if dry_run else sum(one.problem is None for one in pruned)
    done = "would be removed" if dry_run else "removed"
    text = f"{gone} of {len(pruned)} restore points {done} ({limits})\n"
    return table(("domain", "taken (UTC)", "run", "result"), rows) + text


def points_table(points: Sequence[StoredPoint]) -> str:
    """Give a row per restore point, the oldest first, and one per disk."""
    head = ("domain", "taken (UTC)", "run", "consistency", "node", "disk", "image", "size", "")
    rows = []
    for point in points:
        remark = _remark(point)
        taken = f"{point.taken:%Y-%m-%d %H:%M:%S}"
        cells: tuple[str, ...] = (point.domain, taken, point.id.run, point.consistency, point.node or "-")
        for image in point.images or [None]:
            disk = (image.target, image.image, _size(image.size)) if image else ("-", "-", "-")
            rows.append((*cells, *disk, remark))
            cells, remark = ("",) * len(cells), ""
    return table(head, rows) if rows else "no restore points\n"


def _remark(point: StoredPoint) -> str:
    if not point.manifest_id:
        return "incomplete: not restorable"
    return "from the future: a clock was wrong" if is_future(point.taken) else ""


def points_json(points: Sequence[StoredPoint]) -> list[dict[str, object]]:
    """Give the same for programs. Sizes in bytes, None if only the manifest has them."""
    return [
        {
            "run": point.id.run,
            "attempt": point.id.attempt,
            "uuid": point.id.uuid,
            "domain": point.domain,
            "taken": point.taken.isoformat(),
            "consistency": point.consistency,
            "node": point.node,
            "complete": bool(point.manifest_id),
            "manifest_id": point.manifest_id,
            "images": [
                {
                    "target": image.target,
                    "image": image.image,
                    "size": image.size,
                    "restore_id": image.restore_id,
                }
                for image in point.images
            ],
        }
        for point in points
    ]


def _size(size: int | None) -> str:
    return "-" if size is None else size_text(size)


def restored_table(restored: Sequence[RestoredImage]) -> str:
    """Give a row per restored disk."""
    head = ("disk", "image", "restored to", "size", "written", "time", "rate")
    rows = []
    for one in restored:
        rate = f"{size_text(one.saved.size / one.seconds)}/s" if one.seconds else "-"
        sizes = (size_text(one.saved.size), size_text(one.written))
        rows.append((one.saved.target, one.saved.image, one.target, *sizes, f"{one.seconds:.1f} s", rate))
    return table(head, rows)


def verified_text(verified: Verified) -> str:
    """Give the result of a verification in one line."""
    failed = f"{_count(verified.failed, 'domain')} failed; " if verified.failed else ""
    return f"{failed}{_count(verified.images, 'image')} verified ({size_text(verified.size)})\n"


def drilled_text(name: str, kind: str) -> str:
    """Give the result of a drill of this kind that passed in one line."""
    if kind == INSTANT:
        return f"instant drill of {one_line(name)} passed; its data were not compared\n"
    return f"drill of {one_line(name)} passed\n"


def problem_count(problems: int) -> str:
    """Give the number of problems that a check found."""
    return f"{_count(problems, 'problem')}\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def json_text(value: object) -> str:
    """Give a value for programs."""
    return json.dumps(value, indent=2) + "\n"


def json_parts(values: Iterable[object]) -> Iterator[str]:
    """Yield a list for programs, value by value."""
    before = "[\n"
    for value in values:
        yield before + indent(json.dumps(value, indent=2), "  ")
        before = ",\n"
    yield "\n]\n" if before == ",\n" else "[]\n"


def keys_table(keys: Sequence[RepositoryKey]) -> str:
    """Give a row per key, the oldest first."""
    head = ("key", "added", "by", "seconds per call", "")
    rows = [
        (
            key.id[:8],
            f"{key.created:%Y-%m-%d %H:%M}",
            key.owner,
            f"{key.seconds:.2f}",
            "used by this node" if key.opens else "",
        )
        for key in keys
    ]
    return table(head, rows)


def keys_json(keys: Sequence[RepositoryKey]) -> list[dict[str, object]]:
    """Give the same for programs."""
    return [
        {
            "key": key.id,
            "added": f"{key.created:%Y-%m-%dT%H:%M:%S}",
            "by": key.owner,
            "seconds": round(key.seconds, 4),
            "fast": key.fast,
            "used": key.opens,
        }
        for key in keys
    ]


def fast_key_text(key: RepositoryKey, tried_first: bool) -> str:
    """Give what the key costs, and whether this node's calls try it first."""
    used = "this node uses it from now on, others from their next day's run on"
    if not tried_first:
        used = (
            "this node may use another one, as STATE_DIR cannot be written, or RESTIC_ENVIRONMENT has a"
            f' RESTIC_KEY_HINT: set it to "{key.id[:8]}" there'
        )
    return f"key {key.id[:8]} takes {key.seconds:.2f} s in each call of restic; {used}\n"


def removed_keys_text(keys: Sequence[RepositoryKey]) -> str:
    return "".join(f"removed key {key.id[:8]}\n" for key in keys) or "there is no fast key\n"
