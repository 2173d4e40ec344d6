"""backup/terminal/progress/activity.py and activity_text.py: amounts, rates and time left, if known."""

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


def test_a_second_pass_has_no_negative_rate() -> None:
    meter = Meter()
    meter.record(0, 1000)
    meter.record(5, 10)
    meter.record(7, 30)
    assert meter.rate(7) == 10


def test_the_time_left_is_estimated_only_once_the_rate_has_settled() -> None:
    meter = Meter()
    meter.record(0, 0)
    meter.record(SETTLED - 1, 90)
    assert meter.seconds_for(50, SETTLED - 1) is None
    meter.record(SETTLED, 100)
    assert meter.seconds_for(50, SETTLED) == 5
    assert meter.seconds_for(50, 10 * SETTLED + WINDOW) is None


def test_the_progress_of_a_job_is_the_sum_of_its_disks() -> None:
    jobs = activity(web=100)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 40, 40, now=1)
    jobs.progress("web", "vdb", 15, 60, now=2)
    assert only(jobs, 2) == JobProgress("web", Phase.STREAM, ("vdb",), 55, 100, 15, None)
    jobs.progress("web", "vdb", 35, 60, now=21)
    assert only(jobs, 21).left == 25 / (35 / 20)


def test_the_total_of_an_incremental_backup_is_what_has_to_be_read() -> None:
    jobs = activity(web=0)
    jobs.phase("web", Phase.STREAM)
    assert only(jobs, 1).total == 0
    jobs.progress("web", "", 5, 20, now=1)
    assert (only(jobs, 1).targets, only(jobs, 1).done, only(jobs, 1).total) == ((), 5, 20)


def test_without_a_planned_size_there_is_no_total() -> None:
    jobs = activity(web=0)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 5, 20, now=1)
    assert (only(jobs, 1).done, only(jobs, 1).total, only(jobs, 30).left) == (5, 0, None)


def test_a_verification_adds_its_own_bytes_and_phases_without_bytes_have_no_rate() -> None:
    jobs = activity(web=40)
    jobs.phase("web", Phase.STREAM)
    jobs.progress("web", "vda", 10, 20, now=0)
    jobs.progress("web", "vda", 20, 20, now=2)
    jobs.phase("web", Phase.VERIFY)
    jobs.progress("web", "vda", 10, 20, now=3)
    assert only(jobs, 3) == JobProgress("web", Phase.VERIFY, ("vda",), 30, 40, 20 / 3, None)
    jobs.phase("web", Phase.TIDY)
    assert only(jobs, 4) == JobProgress("web", Phase.TIDY, (), 30, 40)


def test_the_same_phase_again_is_no_change() -> None:
    jobs = activity(web=1)
    assert [jobs.phase("web", one) for one in (Phase.STREAM, Phase.STREAM, Phase.TIDY)] == [True, False, True]


def test_the_totals_include_ended_jobs_and_exclude_the_rest_of_failed_ones() -> None:
    jobs = activity(good=100, bad=100, next=100)
    jobs.progress("good", "vda", 90, 100, now=0)
    jobs.progress("bad", "vda", 30, 100, now=0)
    jobs.ended("GOOD", failed=False)
    jobs.ended("BAD", failed=True)
    progress = jobs.current(60)
    assert (progress.planned, progress.ended, progress.failed) == (3, 2, 1)
    assert (progress.done, progress.total, progress.jobs, progress.seconds) == (130, 230, (), 60)


def test_a_retry_takes_the_failure_back() -> None:
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


def test_domains_with_one_name_on_two_libvirts_are_separate() -> None:
    jobs = Activity(0)
    for uuid in "AB":
        jobs.planned(uuid, "web", 10)
    for uuid in "AB":
        jobs.phase("web", Phase.STREAM)
        jobs.ended(uuid, failed=False)
    assert (jobs.current(1).planned, jobs.current(1).ended) == (2, 2)


def test_the_run_has_a_total_only_if_all_sizes_are_known() -> None:
    jobs = activity(web=100, new=0)
    jobs.progress("web", "vda", 30, 100, now=0)
    assert (jobs.current(1).done, jobs.current(1).total, jobs.current(30).left) == (30, 0, None)


def test_the_time_left_of_a_run_follows_from_the_current_rates() -> None:
    jobs = activity(a=1000, b=1000, c=1000)
    for second in range(11):
        for name in "ab":
            jobs.progress(name, "vda", 50 * second, 1000, now=second)
    progress = jobs.current(10)
    assert (progress.rate, progress.left) == (100, 20)


def test_texts_show_known_values_only() -> None:
    job = JobProgress("web", Phase.STREAM, ("vda", "vdb"), 9 * GIB, 20 * GIB, 312 << 20, 3723)
    expected = "streaming vda vdb, 45 % (9.0 GiB of 20.0 GiB), 312.0 MiB/s, 1:02:03 left"
    assert job_text(job) == expected
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
