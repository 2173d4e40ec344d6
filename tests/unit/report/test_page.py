"""backup/report/page: the content of the HTML page, and that it needs nothing from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from backup.job_result import Phase
from backup.report.calendar import Days
from backup.report.page import page
from backup.report.past_runs import PastRuns, past_runs

from ..past_reports import NOW, keep, names, night

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
STYLES = (Path(__file__).parents[3] / "backup/report/page/report.css").read_text()
NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "\u202egnp.exe",
    "שרת-דואר",
    "🐘" * 40,
    "x" * 300,
    "a\nb\x1b[2J\x00\udc80",
]


class Reader(HTMLParser):
    """Reads a page, and refuses one that is not well-formed."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(content.decode("ascii"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {attrs}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(filter(None, self.texts))


def made(directory: Path, *reports: Any) -> bytes:
    """Give the page of the last of these."""
    return page([past_runs(keep(directory, *reports), reports[-1]["run"], NOW.date())], NOW)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    nights = [night(names(20), days_ago, 0.1) for days_ago in reversed(range(30))]
    nights[-1]["domains"][2].update(status="failed", reason="no answer", hint="is it on?", images=[])
    nights[-1]["domains"][3].update(status="skipped", reason="saved already", hint="", images=[])
    nights[-1].update(exit_code=3, errors=["cannot connect to libvirt at qemu+ssh://node2/system"])
    return Reader(made(tmp_path_factory.mktemp("state"), *nights))


def test_the_page_loads_nothing_and_runs_no_script(month: Reader) -> None:
    assert not {"script", "link", "img", "iframe", "object", "base"} & {*month.tags}
    assert [value for name, value in month.attributes if name in ("href", "src") and value[0] != "#"] == []
    assert [name for name, _ in month.attributes if name.startswith("on")] == []
    assert not re.search(r"@import|url\((?!#)|https?:", STYLES)


def test_the_page_is_accessible(month: Reader) -> None:
    assert month.tags[0] == "html"
    assert ("lang", "en") in month.attributes
    assert ("content", "width=device-width, initial-scale=1") in month.attributes
    assert month.tags.count("caption") == month.tags.count("table") == 2
    assert {value for name, value in month.attributes if name == "scope"} == {"row", "col", "colgroup"}
    assert any(name == "aria-label" and value.startswith("Timeline of the run: 3 workers, 20 jobs")
               for name, value in month.attributes)  # fmt: skip


def test_the_page_shows_the_run_its_problems_its_domains_and_the_calendar(month: Reader) -> None:
    for text in (
        "virt-rbd-backup on",
        "node1",
        "exit code 3",
        "Problems",
        "The last 30 days",
        "Worker 3",
    ):
        assert text in month.text
    assert "cannot connect to libvirt at qemu+ssh://node2/system" in month.text
    assert "no answer\nHint: is it on?" in month.text
    assert "saved already" in month.text
    assert "an empty drive" in month.text
    assert month.attributes.count(("class", "worker")) == 3
    assert sum(name == "class" and value.startswith("day ") for name, value in month.attributes) >= 20 * 30


@pytest.mark.parametrize("what", ["name", "reason", "host"])
def test_names_and_messages_are_escaped(tmp_path: Path, what: str) -> None:
    report = night(names(len(NASTY)))
    tame = Reader(made(tmp_path / "tame", report))
    for domain, text in zip(report["domains"], NASTY):
        domain.update(**{"name": text} if what == "name" else {"proof_failure": text})
        domain["not_covered"] = [{"target": "vda", "source": text, "reason": text}]
    if what == "host":
        report["host"] = NASTY[0]
    reader = Reader(made(tmp_path / "nasty", report))
    assert {*reader.tags} - {*tame.tags} <= {"details", "summary", "section", "ul", "li"}
    for shown in ("<script>alert(1)</script>", "{{ 7 * 7 }}", "\\u202egnp.exe", "שרת-דואר", "a\\nb\\x1b[2J"):
        assert shown in reader.text


def test_a_run_of_named_domains_shows_the_names(tmp_path: Path) -> None:
    text = Reader(made(tmp_path, night(names(3), 1), night(["web01"], named=["web*"]))).text
    assert "Selected on the command line:\nweb*" in text
    assert "1 domain saved" in text
    assert "mail01" in text, "in the calendar"


@pytest.mark.parametrize(
    "changes", [{"exit_code": 1, "errors": ["no libvirt"]}, {}, {"exit_code": 130}, {"finished": "same"}]
)
def test_a_run_without_a_job_has_a_page_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = night([])
    report.update(changes)
    if changes.get("finished"):
        report["finished"] = report["started"]
    reader = Reader(made(tmp_path, report))
    assert "table" not in reader.tags
    assert f"exit code {report['exit_code']}" in reader.text


def test_ignored_reports_are_counted(tmp_path: Path) -> None:
    other = {**night([], 1), "schema": 2}
    assert "Ignored: 1 report of another version" in Reader(made(tmp_path, other, night([]))).text


def test_a_page_of_500_domains_stays_small() -> None:
    report = night(names(500), failing=0.02)
    days = Days(NOW.date())
    for day in reversed(days.dates):
        days.add(json.loads(json.dumps(report).replace(f"{NOW:%Y-%m-%d}", f"{day}")))
    assert {len([day for day in row.days if day.kind]) for row in days.rows()} == {30}
    assert len(page([PastRuns(report, days, 0)], NOW)) < 2 << 20


SCHEMES = {
    "light": dict(re.findall(r"--([\w-]+): (#\w{6})", STYLES.split("@media")[0])),
    "dark": dict(re.findall(r"--([\w-]+): (#\w{6})", STYLES.split("@media")[1])),
}
PAIRS = [(text, ground) for text in ("ink", "soft") for ground in ("page", "card")]
PAIRS += [("failed", "page"), ("soft", "empty"), ("on-icon", "saved"), ("on-icon", "failed")]
PAIRS += [(f"on-{kind}", kind) for kind in ("filesystem", "paused", "offline", "crash")]
PAIRS += [("on-day-failed", "day-failed"), ("on-day-skipped", "day-skipped")]
PAIRS += [("on-bar", phase) for phase in ("prepare", "snapshot", "stream", "verify", "tidy")]
PAIRS += [("on-bad", f"bad-{phase}") for phase in ("prepare", "snapshot", "stream")]


def test_each_phase_of_a_backup_has_a_colour() -> None:
    schema = json.loads((Path(__file__).parents[3] / "res/report.schema.json").read_text())
    phases = schema["$defs"]["timeline"]["properties"]["phases"]["items"]["properties"]["phase"]["enum"]
    for phase in phases:
        kind = Phase(phase).name.lower()
        assert re.search(rf"(^|}} |, )\.{kind}(, \.\w+)* {{ fill:", STYLES, re.MULTILINE), kind


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_has_enough_contrast(scheme: str, text: str, ground: str) -> None:
    """The contrast of WCAG 2.1, 1.4.3, level AA."""
    light, dark = sorted((_luminance(SCHEMES[scheme][one]) for one in (text, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    """Give the relative luminance as WCAG 2.1 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_of_several_groups_each_has_its_part_that_the_head_leads_to(tmp_path: Path) -> None:
    reports = [night(["web"]), {**night(["db"]), "group": "db"}, {**night(["x"]), "group": "a-b"}]
    reports[1]["domains"][0].update(status="failed", reason="no answer", hint="is it on?", images=[])
    reports[1].update(exit_code=3)
    pasts = [
        past_runs(keep(tmp_path / str(number), report), "", NOW.date())
        for number, report in enumerate(reports)
    ]
    read = Reader(page(pasts, NOW))
    ids = {value for name, value in read.attributes if name == "id"}
    links = [value for name, value in read.attributes if name == "href" and value.startswith("#g")]
    assert links == ["#group-db", "#group-a-b"]
    assert {link[1:] for link in links} | {"without-group"} <= ids
    assert read.tags.count("main") == 1
    assert "The last runs of 1 of 3 groups failed" in read.text
    assert "no answer" in read.text
    assert [text for text in read.texts if text == "group db"]
    assert read.tags.count("article") == 3


def test_the_run_of_one_group_alone_is_a_page_as_any_other_with_its_name(tmp_path: Path) -> None:
    read = Reader(made(tmp_path, {**night(["db"]), "group": "db"}))
    assert "article" not in read.tags
    assert any("group db" in text for text in read.texts)
