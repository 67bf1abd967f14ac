"""Contract of both job stores: leases, fencing, one recorded effect, one end, and the same answer when asked twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from layerfarm.jobs.errors import JobNotFound, RequestError
from layerfarm.jobs.flows.base import Unit
from layerfarm.worker.jobstore.model import Answer, Claim, Item, Refused, Status
from layerfarm.worker.model import JobError, JobState
from tests.unit.jobstore.stores import CLOSE, LEASE, ONE, OTHER, START, Bench, Numbers, unit

ERROR = JobError(type="RequestError", message="why")


# --- begin ----------------------------------------------------------------------------------------


def test_record_follows_the_life_of_the_job(bench: Bench) -> None:
    bench.submit()
    queued = bench.store.job("job")
    assert (queued.state, queued.kind, queued.stages, queued.attempt) == (JobState.QUEUED, "toy", 2, 1)
    assert queued.started is None and queued.submitted == bench.clock.now
    start = bench.claimed(START)
    assert bench.store.job("job").state is JobState.RUNNING
    bench.open(start, 1, 2)
    running = bench.store.job("job")
    assert (running.stage, running.stage_number, running.units_total, running.bytes_total) == ("a stage", 2, 2, 20)
    for index in range(2):
        bench.done(unit(index, 1))
    last = bench.claimed(Item("job", 1, "advance", 1))
    assert bench.store.finish(last, JobState.SUCCEEDED, result='{"digest": "x"}').due
    assert bench.store.job("job").ending is JobState.SUCCEEDED
    assert bench.store.closed(bench.claimed(CLOSE)) == "ok"
    ended = bench.store.job("job")
    assert (ended.state, ended.ending, ended.result) == (JobState.SUCCEEDED, None, {"digest": "x"})
    assert ended.ended == bench.clock.now


def test_submission_that_is_repeated_is_the_same_job(bench: Bench) -> None:
    assert bench.submit(most_queued=1)
    assert bench.submit(most_queued=1)
    assert not bench.submit("other", most_queued=1)
    with pytest.raises(JobNotFound):
        bench.store.job("other")


def test_submitters_take_turns(bench: Bench) -> None:
    for job_id, who in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
        bench.submit(job_id, submitter=who)
    begun = []
    for job_id in ("a1", "a2", "a3", "b1"):
        begun.append(bench.store.next(job_id, 1, ONE)[0])
        bench.open(bench.claimed(Item(begun[-1], 1, "advance")), 0, 1)
    assert begun == ["a1", "b1", "a2", "a3"]


def test_job_that_was_taken_and_not_begun_begins_by_its_own_message(bench: Bench) -> None:
    bench.submit("a")
    bench.submit("b")
    assert [bench.store.next("a", 1, ONE) for _ in range(2)] == [("a", 1), ("a", 1)]
    bench.clock.goes_on(2)
    assert bench.store.next("a", 1, OTHER) == ("a", 1)


@pytest.mark.parametrize("claims", [False, True])
def test_message_of_a_job_that_another_process_begins_just_now_begins_the_next(bench: Bench, claims: bool) -> None:
    for job_id in ("a", "b", "c"):
        bench.submit(job_id)
    assert bench.store.next("b", 1, ONE) == ("a", 1)
    if claims:
        bench.claimed(Item("a", 1, "advance"), ONE)
        bench.clock.goes_on(2)
    assert bench.store.next("a", 1, OTHER) == ("b", 1)
    assert bench.store.next("c", 1, OTHER) == ("c", 1)


# --- claims ---------------------------------------------------------------------------------------


def test_claim_gives_all_that_the_work_needs(bench: Bench) -> None:
    bench.opened(2)
    claim = bench.claimed(unit(1))
    assert claim.unit == Unit(params={"n": 1}, bytes=10)
    job = claim.job
    assert (job.kind, job.request, job.position, job.flow_state) == ("toy", "{}", 0, '{"total":0}')
    bench.store.record_result(claim, {"n": 1})
    bench.done(unit(0))
    assert bench.claimed(Item("job", 1, "advance", 0)).results == [{"n": 0}, {"n": 1}]


def test_second_claim_of_a_living_holder_is_refused(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    assert bench.refused(unit(1), OTHER).why is Status.BUSY


def test_claim_that_is_asked_for_again_is_the_same(bench: Bench) -> None:
    bench.opened()
    tokens = {bench.claimed(unit(1)).token for _ in range(9)}
    assert len(tokens) == 1


def test_claim_whose_lease_ran_out_is_taken_over_with_a_greater_token(bench: Bench) -> None:
    bench.opened()
    first = bench.claimed(unit(1))
    bench.lease_ends()
    second = bench.claimed(unit(1), OTHER)
    assert second.token > first.token
    assert bench.store.beat(first, 5) is Status.STALE
    assert bench.store.beat(second, 5) is Status.OK


def test_beats_keep_a_claim_past_its_lease(bench: Bench) -> None:
    bench.opened()
    claim = bench.claimed(unit(1))
    for _ in range(5):
        bench.clock.goes_on(LEASE / 2)
        assert bench.store.beat(claim, 0) is Status.OK
    assert bench.refused(unit(1), OTHER).why is Status.BUSY


def test_claim_dated_by_a_clock_that_was_set_back_is_none(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    bench.clock.goes_on(-3600)
    bench.claimed(unit(1), OTHER)
    bench.clock.goes_on(-3600)
    assert unit(1) in bench.store.look("job", 60).items


def test_cancel_does_not_wait_for_a_claim_dated_by_a_clock_that_was_set_back(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    bench.clock.goes_on(-3600)
    assert bench.store.end("job", JobState.CANCELLED) == Answer(Status.OK, due=True)
    assert bench.store.closed(bench.claimed(CLOSE, OTHER)) is Status.OK


def test_unit_is_poison_after_the_allowed_deliveries(bench: Bench) -> None:
    bench.opened()
    for _ in range(3):
        bench.claimed(unit(1))
        bench.lease_ends()
    assert bench.refused(unit(1)).why is Status.POISON


def test_try_that_does_not_count_is_no_delivery(bench: Bench) -> None:
    bench.opened()
    for _ in range(9):
        claim = bench.claimed(unit(1))
        for _ in range(2):
            bench.store.release(claim, counts=False)


@pytest.mark.parametrize("item", [unit(0, 1), unit(7), unit(0, 0, 2), Item("job", 2, "close")])
def test_item_of_another_stage_plan_or_attempt_is_stale(bench: Bench, item: Item) -> None:
    bench.opened()
    assert bench.refused(item).why is Status.STALE


@pytest.mark.parametrize("stage", [-1, 0, 1])
def test_advance_without_a_purpose_is_stale(bench: Bench, stage: int) -> None:
    bench.opened()
    assert bench.refused(Item("job", 1, "advance", stage)).why is Status.STALE


def test_advance_whose_units_were_never_sent_may_be_claimed_again(bench: Bench) -> None:
    bench.submit()
    first = bench.claimed(START)
    assert bench.store.open_stage(first, 0, "first", Numbers(), [Unit(params={})]).status is Status.OK
    bench.lease_ends()
    assert bench.store.pending(first) == (0, [0])  # not taken over yet
    second = bench.claimed(START, OTHER)
    assert bench.store.pending(first) is None
    assert bench.store.pending(second) == (0, [0])


# --- under a claim --------------------------------------------------------------------------------


def test_result_is_recorded_once_and_by_the_holder(bench: Bench) -> None:
    bench.opened()
    first = bench.claimed(unit(1))
    bench.lease_ends()
    second = bench.claimed(unit(1), OTHER)
    assert bench.store.record_result(first, {"n": "first"}).status is Status.STALE
    assert bench.store.record_result(second, {"n": "second"}).status is Status.OK
    assert bench.store.record_result(second, {"n": "second"}).status is Status.OK
    record = bench.store.job("job")
    assert (record.units_done, record.bytes_done) == (1, 10)
    assert bench.refused(unit(1)).why is Status.DONE


def test_last_result_completes_the_stage(bench: Bench) -> None:
    bench.opened()
    complete = [bench.store.record_result(bench.claimed(unit(n)), {}).complete for n in (2, 0, 1)]
    assert complete == [False, False, True]
    assert bench.refused(unit(1)) == Refused(Status.DONE, True)


def test_bytes_are_counted_once_and_those_of_a_try_that_died_taken_back(bench: Bench) -> None:
    bench.opened()
    first = bench.claimed(unit(1))
    for _ in range(2):
        bench.store.beat(first, 7)
    assert bench.store.job("job").bytes_done == 7
    bench.lease_ends()
    second = bench.claimed(unit(1), OTHER)
    assert bench.store.job("job").bytes_done == 0
    bench.store.beat(second, 4)
    bench.store.record_result(second, {})
    assert bench.store.job("job").bytes_done == 10


def test_stage_is_opened_by_the_newest_claim_only_and_once(bench: Bench) -> None:
    bench.submit()
    old = bench.claimed(START)
    bench.lease_ends()
    new = bench.claimed(START, OTHER)
    units = [Unit(params={})]
    assert bench.store.open_stage(old, 0, "first", Numbers(total=1), units).status is Status.STALE
    for _ in range(2):
        assert bench.store.open_stage(new, 0, "first", Numbers(total=2), units).status is Status.OK
    assert bench.store.view("job").flow_state == '{"total":2}'
    for _ in range(2):
        assert bench.store.sent(new, 0).status is Status.OK


def test_each_step_claims_the_next_one_and_gives_the_same_claim_if_its_reply_was_lost(bench: Bench) -> None:
    bench.submit()
    begins = bench.claimed(START)
    join = Item("job", 1, "advance", 0)

    def twice(operation: Callable[[], Answer]) -> Claim:
        first, second = operation(), operation()
        assert first == second
        assert first.status is Status.OK
        assert first.claim is not None
        return first.claim

    units = [Unit(params={"n": 7}, bytes=10)]
    doing = twice(lambda: bench.store.open_stage(begins, 0, "first", Numbers(total=3), units, then=unit(0)))
    assert (doing.item, doing.unit, doing.job.flow_state) == (unit(0), units[0], '{"total":3}')
    assert bench.store.pending(begins) is None
    assert bench.refused(START, OTHER).why is Status.STALE  # nothing is left to be sent
    assert bench.refused(unit(0), OTHER).why is Status.BUSY
    joins = twice(lambda: bench.store.record_result(doing, {"n": 8}, then=join))
    assert (joins.item, joins.results) == (join, [{"n": 8}])
    assert bench.refused(join, OTHER).why is Status.BUSY
    closes = twice(lambda: bench.store.finish(joins, JobState.SUCCEEDED, result="{}", then=CLOSE))
    assert (closes.item, closes.job.ending) == (CLOSE, JobState.SUCCEEDED)
    assert begins.token < doing.token < joins.token < closes.token
    assert bench.store.closed(closes) is Status.OK


def test_what_is_claimed_next_is_sent_again_if_its_holder_dies(bench: Bench) -> None:
    bench.submit()
    bench.store.open_stage(bench.claimed(START), 0, "first", Numbers(), [Unit(params={})], then=unit(0))
    bench.lease_ends()
    assert bench.store.look("job", -1).items == (unit(0),)


def test_join_is_claimed_next_once_the_stage_is_complete_and_by_the_holder(bench: Bench) -> None:
    join = Item("job", 1, "advance", 0)
    bench.opened(2)
    old = bench.claimed(unit(1), OTHER)
    assert bench.store.record_result(bench.claimed(unit(0)), {}, then=join) == Answer(Status.OK)
    bench.lease_ends()
    new = bench.claimed(unit(1))
    assert bench.store.record_result(old, {}, then=join) == Answer(Status.STALE)
    assert bench.store.record_result(new, {}, then=join).claim == bench.claimed(join)


def test_close_is_claimed_next_if_no_other_process_works_on_the_job(bench: Bench) -> None:
    bench.opened(2)
    fails, works = bench.claimed(unit(0)), bench.claimed(unit(1), OTHER)
    for _ in range(2):
        assert bench.store.finish(fails, JobState.FAILED, error=ERROR, then=CLOSE) == Answer(Status.OK)
    assert bench.store.record_result(works, {}) == Answer(Status.OVER, due=True)
    bench.claimed(CLOSE, OTHER)


def test_last_report_of_sent_units_learns_that_the_job_is_over(bench: Bench) -> None:
    bench.submit()
    begins = bench.claimed(START)
    bench.store.open_stage(begins, 0, "first", Numbers(), [Unit(params={})])
    bench.done(unit(0))
    joins = bench.claimed(Item("job", 1, "advance", 0), OTHER)
    assert not bench.store.finish(joins, JobState.SUCCEEDED).due
    assert bench.store.sent(begins, 0).due


# --- end ------------------------------------------------------------------------------------------


def test_cancel_refuses_new_units_and_tells_running_ones(bench: Bench) -> None:
    bench.opened()
    claim = bench.claimed(unit(0))
    answer = bench.store.end("job", JobState.CANCELLED)
    assert (answer.status, answer.due) == (Status.OK, False)
    assert bench.store.beat(claim, 0) is Status.OVER
    assert bench.refused(unit(1)) == Refused(Status.OVER, False)
    assert bench.store.release(claim).due
    assert bench.refused(unit(1)).due
    assert bench.store.job("job").state is JobState.RUNNING
    bench.store.closed(bench.claimed(CLOSE))
    assert bench.store.job("job").state is JobState.CANCELLED


def test_job_that_never_began_ends_at_once(bench: Bench) -> None:
    bench.submit()
    assert bench.store.end("job", JobState.CANCELLED).status is Status.ENDED
    assert bench.store.job("job").state is JobState.CANCELLED
    assert bench.store.active() == []
    assert bench.submit("other", most_queued=1)


def test_job_whose_end_is_not_decided_cannot_be_closed(bench: Bench) -> None:
    bench.opened()
    assert bench.refused(CLOSE).why is Status.STALE


def test_first_ending_counts(bench: Bench) -> None:
    bench.opened()
    assert bench.store.end("job", JobState.FAILED, error=ERROR).status is Status.OK
    assert bench.store.end("job", JobState.CANCELLED).status is Status.OVER
    bench.store.closed(bench.claimed(CLOSE))
    record = bench.store.job("job")
    assert (record.state, record.error, record.result) == (JobState.FAILED, ERROR, None)


def test_a_former_claim_holder_cannot_end_the_job(bench: Bench) -> None:
    bench.opened()
    first = bench.claimed(unit(0))
    bench.lease_ends()
    bench.claimed(unit(0), OTHER)
    assert bench.store.finish(first, JobState.FAILED, error=ERROR).status is Status.STALE
    assert bench.store.job("job").ending is None


def test_end_that_is_repeated_is_the_same(bench: Bench) -> None:
    bench.opened(1)
    claim = bench.claimed(unit(0))
    for _ in range(2):
        assert bench.store.finish(claim, JobState.FAILED, error=ERROR) == Answer(Status.OK, due=True)
    close = bench.claimed(CLOSE)
    for _ in range(2):
        assert bench.store.closed(close) is Status.OK


def test_result_that_comes_after_the_end_is_not_recorded(bench: Bench) -> None:
    bench.opened()
    claim = bench.claimed(unit(0))
    bench.store.end("job", JobState.CANCELLED)
    assert bench.store.record_result(claim, {}) == Answer(Status.OVER, due=True)


def test_job_that_commits_cannot_be_cancelled_any_more(bench: Bench) -> None:
    bench.opened(commits=True)
    claim = bench.claimed(unit(0))
    assert bench.store.end("job", JobState.CANCELLED).status is Status.LATE
    assert bench.store.look("job", 60, longest=0.001).reason == ""
    assert bench.store.beat(claim, 0) is Status.OK
    assert bench.store.end("job", JobState.FAILED, error=ERROR, forced=True).status is Status.OK


def test_job_can_be_cancelled_until_it_commits(bench: Bench) -> None:
    bench.opened(commits=True)
    assert bench.store.end("job", JobState.CANCELLED).status is Status.OK


def test_nothing_is_known_of_a_job_that_never_was(bench: Bench) -> None:
    assert bench.refused(START).why is Status.GONE
    assert bench.store.end("job", JobState.CANCELLED).status is Status.GONE
    with pytest.raises(JobNotFound):
        bench.store.retry("job", restart=False)


# --- a failed job ---------------------------------------------------------------------------------


def failed(bench: Bench, *, kept: float = 0) -> None:
    bench.opened()
    bench.done(unit(0))
    bench.store.end("job", JobState.FAILED, error=ERROR)
    close = bench.claimed(CLOSE)
    if kept:
        for _ in range(2):
            assert bench.store.keep(close, kept) is Status.OK
    else:
        assert bench.store.closed(close) is Status.OK


def test_retry_continues_with_unfinished_units(bench: Bench) -> None:
    failed(bench, kept=1000)
    assert bench.store.job("job").kept == pytest.approx(bench.clock.now + 1000)
    assert bench.store.retry("job", restart=False) == (1, False)
    assert bench.store.job("job").state is JobState.RUNNING
    assert bench.store.look("job", -1).items == (unit(1), unit(2))


@pytest.mark.parametrize("kept", [0.0, 1000.0])
def test_restart_is_another_attempt(bench: Bench, kept: float) -> None:
    failed(bench, kept=kept)
    assert bench.store.retry("job", restart=True) == (2, True)
    assert (bench.store.job("job").attempt, bench.store.job("job").retries) == (2, 1)
    assert bench.store.look("job", -1).items == (Item("job", 2, "advance", -1),)
    assert bench.refused(unit(1)).why is Status.STALE
    assert bench.refused(CLOSE).why is Status.STALE
    start = bench.claimed(Item("job", 2, "advance"))
    bench.open(start, 0, 2)
    bench.claimed(unit(1, 0, 2))


def test_claim_of_an_earlier_attempt_changes_nothing(bench: Bench) -> None:
    bench.opened()
    late = bench.claimed(unit(0), OTHER)
    bench.done(unit(1))
    bench.store.end("job", JobState.FAILED, error=ERROR)
    bench.lease_ends()
    bench.store.closed(bench.claimed(CLOSE))
    bench.store.retry("job", restart=True)
    bench.open(bench.claimed(Item("job", 2, "advance")), 0, 2)
    assert bench.store.record_result(late, {"n": "old"}).status is Status.STALE
    assert bench.store.finish(late, JobState.FAILED, error=ERROR).status is Status.STALE
    assert bench.store.release(late).status is Status.STALE
    assert bench.store.beat(late, 1) is Status.STALE
    assert bench.store.job("job").units_done == 0


def test_only_a_failed_job_can_be_retried(bench: Bench) -> None:
    bench.opened()
    with pytest.raises(RequestError, match="only a job that failed"):
        bench.store.retry("job", restart=False)


def test_kept_records_expire(bench: Bench) -> None:
    failed(bench, kept=1000)
    assert bench.store.overdue() == []
    bench.clock.goes_on(1001)
    assert bench.store.overdue() == [CLOSE]
    assert bench.store.overdue() == []  # not again before a minute
    bench.clock.goes_on(61)
    assert bench.store.overdue() == [CLOSE]
    bench.store.closed(bench.claimed(CLOSE))
    assert (bench.store.job("job").state, bench.store.job("job").kept) == (JobState.FAILED, None)
    bench.clock.goes_on(61)
    assert bench.store.overdue() == []


def test_kept_records_go_when_they_are_released(bench: Bench) -> None:
    failed(bench, kept=1000)
    assert bench.store.discard("job") == 1
    bench.store.closed(bench.claimed(CLOSE))
    assert bench.store.discard("job") == 0


def test_cleaning_that_failed_is_done_again_after_a_minute(bench: Bench) -> None:
    bench.opened()
    bench.store.end("job", JobState.CANCELLED)
    assert bench.store.closed(bench.claimed(CLOSE), clean=False) is Status.OK
    assert bench.store.job("job").state is JobState.CANCELLED
    for _ in range(5):
        assert bench.store.overdue() == []
        bench.clock.goes_on(61)
        assert bench.store.overdue() == [CLOSE]
        assert bench.store.closed(bench.claimed(CLOSE), clean=False) is Status.OK
    bench.clock.goes_on(61)
    assert bench.store.closed(bench.claimed(CLOSE)) is Status.OK
    bench.clock.goes_on(61)
    assert bench.store.overdue() == []
    assert bench.store.job("job").state is JobState.CANCELLED


# --- recovery -------------------------------------------------------------------------------------


def test_job_that_is_worked_on_is_not_lost(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(0))
    assert bench.store.look("job", -1).items == ()


def test_quiet_job_is_not_lost_before_its_time(bench: Bench) -> None:
    bench.opened()
    assert bench.store.look("job", 60).items == ()


def test_lost_first_message_is_found(bench: Bench) -> None:
    bench.submit()
    assert bench.store.look("job", -1, all_queued=True).items == ()
    assert bench.store.look("job", -1).items == (START,)


def test_lost_units_are_found(bench: Bench) -> None:
    bench.opened()
    bench.done(unit(1))
    lost = bench.store.look("job", -1)
    assert (lost.reason, lost.items) == ("message lost", (unit(0), unit(2)))


def test_item_whose_holder_vanished_is_found_at_once_and_once(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    bench.lease_ends()
    lost = bench.store.look("job", 60)
    assert (lost.reason, lost.items) == ("lease ran out", (unit(1),))
    assert bench.store.look("job", 60).items == ()


def test_leases_begin_again_after_a_silence(bench: Bench) -> None:
    bench.opened()
    claim = bench.claimed(unit(1))
    for _ in range(5):
        bench.clock.goes_on(10 * LEASE)
        assert bench.store.look("job", 60).items == ()
        assert bench.refused(unit(1), OTHER).why is Status.BUSY
        assert bench.store.beat(claim, 0) is Status.OK
    bench.lease_ends()
    assert bench.store.look("job", 60).items == (unit(1),)


def test_leases_that_began_again_end(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    bench.clock.goes_on(10 * LEASE)
    assert bench.refused(unit(1), OTHER).why is Status.BUSY
    bench.lease_ends()
    assert bench.claimed(unit(1), OTHER)


def test_slow_searches_do_not_renew_a_lease_for_ever(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(1))
    found = []
    for _ in range(4):
        bench.clock.goes_on(LEASE * 0.9)
        bench.store.overdue()
        found += bench.store.look("job", 60).items
    assert found == [unit(1)]


def test_complete_stage_without_a_join_is_found(bench: Bench) -> None:
    bench.opened(1)
    bench.done(unit(0))
    assert bench.store.look("job", -1).items == (Item("job", 1, "advance", 0),)


def test_stage_whose_units_were_never_sent_is_found(bench: Bench) -> None:
    bench.submit()
    bench.store.open_stage(bench.claimed(START), 0, "first", Numbers(), [Unit(params={})])
    bench.lease_ends()
    for _ in range(2):
        assert bench.store.look("job", -1).items == (START,)


def test_incomplete_end_is_found(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(0))
    bench.store.end("job", JobState.CANCELLED)
    bench.lease_ends()
    assert bench.store.look("job", -1).items == (CLOSE,)


def test_items_without_effect_are_sent_less_and_less_often(bench: Bench) -> None:
    bench.opened(1)
    sent = 0
    for _ in range(1000):
        bench.clock.goes_on(1)
        sent += len(bench.store.look("job", 5).items)
    assert 5 <= sent <= 10
    bench.done(unit(0))
    bench.clock.goes_on(6)
    assert bench.store.look("job", 5).items  # something has come of it


def test_unit_that_waits_for_equal_work_is_not_lost(bench: Bench) -> None:
    bench.opened(2)
    bench.store.release(bench.claimed(unit(0)), counts=False, waits=100)
    assert bench.store.look("job", -1).items == (unit(1),)
    bench.clock.goes_on(101)
    assert unit(0) in bench.store.look("job", -1).items


def test_overtime_ends_a_job(bench: Bench) -> None:
    bench.opened()
    bench.clock.goes_on(11)
    assert bench.store.look("job", 60, longest=10).reason == "overtime"


def test_time_of_a_job_begins_again_if_the_clock_is_set_back(bench: Bench) -> None:
    bench.opened()
    bench.clock.goes_on(-3600)
    assert bench.store.look("job", 60, longest=10).reason == ""
    bench.clock.goes_on(11)
    assert bench.store.look("job", 60, longest=10).reason == "overtime"


def test_work_of_stopped_processes_is_handed_back(bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(0))
    bench.claimed(unit(1), OTHER)
    assert set(bench.store.holders("job")) == {ONE, OTHER}
    assert bench.store.hand_back("job", [OTHER]).items == (unit(1),)
    assert bench.store.holders("job") == [ONE]
    assert bench.refused(unit(0), OTHER).why is Status.BUSY
    bench.claimed(unit(1))


@pytest.mark.parametrize("counts", [False, True])
def test_work_of_the_dead_counts_and_that_of_the_stopped_does_not(bench: Bench, counts: bool) -> None:
    bench.opened()
    for _ in range(3):
        bench.claimed(unit(0), OTHER)
        assert bench.store.hand_back("job", [OTHER], counts=counts).items == (unit(0),)
    if counts:
        assert bench.refused(unit(0)).why is Status.POISON
    else:
        bench.claimed(unit(0))


def test_jobs_that_wait_to_begin_are_left_out_on_request(bench: Bench) -> None:
    for job_id in ("job", "other"):
        bench.submit(job_id)
    bench.store.next("job", 1, ONE)
    assert bench.store.active() == ["job", "other"]
    assert bench.store.active(begun=True) == ["job"]


def test_ended_jobs_are_not_active(bench: Bench) -> None:
    bench.submit()
    bench.submit("other")
    bench.store.end("job", JobState.CANCELLED)
    assert bench.store.active() == ["other"]
    assert bench.store.claim(START, ONE) == Refused(Status.OVER)
