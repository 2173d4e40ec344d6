"""activity.py and its words: how far, how fast, and what is left, only where that is known."""

from __future__ import annotations

from backup.job_result import Phase
from backup.terminal.progress.activity import SETTLED, WINDOW, Activity, JobProgress, Meter
from backup.terminal.progress.activity_text import job_text, run_text, short_job_text

GIB = 1 << 30


def activity(**sizes: int) -> Activity:
    """Give one that began at 0 with these domains planned, whose UUIDs are their names in upper case."""
    made = Activity(0)
    for name, size in sizes.items():
        made.planned(name.upper(), name, size)
    return made


def only(of: Activity, now: float) -> JobProgress:
    (job,) = of.current(now).jobs
    return job


def test_a_rate_is_the_mean_of_the_last_seconds_and_fades_when_nothing_flows() -> None:
    meter = Meter()
    assert meter.rate(5) == 0
    for second in range(100):
        meter.record(second, 10 * second if second < 50 else 500 + 30 * (second - 50))
    assert meter.rate(99) == 30
    assert meter.rate(99 + WINDOW / 2) == 15
    assert meter.rate(99 + 3 * WINDOW) == 0


def test_what_begins_anew_has_no_rate_below_zero() -> None:
    meter = Meter()
    meter.record(0, 1000)
    meter.record(5, 10)
    meter.record(7, 30)
    assert meter.rate(7) == 10


def test_an_end_is_foretold_only_when_the_rate_has_settled() -> None:
    meter = Meter()
    meter.record(0, 0)
    meter.record(SETTLED - 1, 90)
    assert meter.seconds_for(50, SETTLED - 1) is None
    meter.record(SETTLED, 100)
    assert meter.seconds_for(50, SETTLED) == 5
    assert meter.seconds_for(50, 10 * SETTLED + WINDOW) is None


def test_a_job_is_as_far_as_its_disks_together() -> None:
    jobs = activity(web=100)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 40, 40, now=1)
    jobs.progress("web", "vdb", 15, 60, now=2)
    assert only(jobs, 2) == JobProgress("web", Phase.STREAM, ("vdb",), 55, 100, 15, None)
    jobs.progress("web", "vdb", 35, 60, now=21)
    assert only(jobs, 21).left == 25 / (35 / 20)


def test_what_is_read_of_changes_alone_is_all_there_is() -> None:
    jobs = activity(web=0)
    jobs.phase("web", Phase.STREAM)
    assert only(jobs, 1).total == 0
    jobs.progress("web", "", 5, 20, now=1)
    assert (only(jobs, 1).targets, only(jobs, 1).done, only(jobs, 1).total) == ((), 5, 20)


def test_a_size_that_nobody_knew_before_is_no_total() -> None:
    jobs = activity(web=0)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 5, 20, now=1)
    assert (only(jobs, 1).done, only(jobs, 1).total, only(jobs, 30).left) == (5, 0, None)


def test_a_verification_is_bytes_of_its_own_and_no_rate_is_shown_while_none_flow() -> None:
    jobs = activity(web=40)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 10, 20, now=0)
    jobs.progress("web", "vda", 20, 20, now=2)
    jobs.phase("web", Phase.VERIFY)
    jobs.progress("web", "vda", 10, 20, now=3)
    assert only(jobs, 3) == JobProgress("web", Phase.VERIFY, ("vda",), 30, 40, 20 / 3, None)
    jobs.phase("web", Phase.TIDY)
    assert only(jobs, 4) == JobProgress("web", Phase.TIDY, (), 30, 40)


def test_only_another_phase_is_a_change() -> None:
    jobs = activity(web=1)
    assert [jobs.phase("web", one) for one in (Phase.STREAM, Phase.STREAM, Phase.TIDY)] == [True, False, True]


def test_the_totals_count_what_has_ended_and_what_a_failure_leaves_out() -> None:
    jobs = activity(good=100, bad=100, next=100)
    jobs.progress("good", "vda", 90, 100, now=0)
    jobs.progress("bad", "vda", 30, 100, now=0)
    jobs.ended("GOOD", failed=False)
    jobs.ended("BAD", failed=True)
    progress = jobs.current(60)
    assert (progress.planned, progress.ended, progress.failed) == (3, 2, 1)
    assert (progress.done, progress.total, progress.jobs, progress.seconds) == (130, 230, (), 60)


def test_a_second_attempt_takes_the_failure_back_for_now() -> None:
    jobs = activity(web=100)
    jobs.progress("web", "vda", 30, 100, now=0)
    jobs.ended("WEB", failed=True)
    jobs.planned("WEB", "web", 100)
    progress = jobs.current(1)
    assert (progress.planned, progress.ended, progress.failed, progress.done, progress.total) == (
        1,
        0,
        0,
        0,
        100,
    )


def test_domains_of_one_name_at_two_libvirts_are_two() -> None:
    jobs = Activity(0)
    for uuid in "AB":
        jobs.planned(uuid, "web", 10)
    for uuid in "AB":
        jobs.phase("web", Phase.STREAM)
        jobs.ended(uuid, failed=False)
    assert (jobs.current(1).planned, jobs.current(1).ended) == (2, 2)


def test_the_run_s_total_is_told_only_if_all_sizes_are_known() -> None:
    jobs = activity(web=100, new=0)
    jobs.progress("web", "vda", 30, 100, now=0)
    assert (jobs.current(1).done, jobs.current(1).total, jobs.current(30).left) == (30, 0, None)


def test_a_run_ends_when_all_of_it_has_flowed_at_the_rates_of_now() -> None:
    jobs = activity(a=1000, b=1000, c=1000)
    for second in range(11):
        for name in "ab":
            jobs.progress(name, "vda", 50 * second, 1000, now=second)
    progress = jobs.current(10)
    assert (progress.rate, progress.left) == (100, 20)


def test_the_words_say_what_is_known_and_no_more() -> None:
    job = JobProgress("web", Phase.STREAM, ("vda", "vdb"), 9 * GIB, 20 * GIB, 312 << 20, 3723)
    told = "streaming vda vdb, 45 % (9.0 GiB of 20.0 GiB), 312.0 MiB/s, 1:02:03 left"
    assert job_text(job) == told
    assert short_job_text(job) == "web streaming vda vdb 45 %"
    assert job_text(JobProgress("web", Phase.PREPARE)) == "preparing"
    assert job_text(JobProgress("web", Phase.STREAM, ("vda",), 9 * GIB)) == "streaming vda, 9.0 GiB"
    jobs = activity(web=4 * GIB, db=4 * GIB)
    assert run_text(jobs.current(61.2)) == "0 of 2 domains done, 0 %, 0 B of 8.0 GiB, running for 1:01"
    jobs.progress("web", "vda", GIB, 4 * GIB, now=0)
    jobs.ended("WEB", failed=True)
    assert run_text(jobs.current(5)) == (
        "1 of 2 domains done, 1 failed, 20 %, 1.0 GiB of 5.0 GiB, running for 0:05"
    )
    assert run_text(activity(web=0).current(5)) == "running for 0:05"
