"""The two job stores answer any operations in any order alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.base import Unit
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Answer, Claim, Item
from layerfarm.worker.jobstore.states import MOVES, Phase
from layerfarm.worker.model import JobRecord, JobState
from tests.explorer.memory_store import MemoryJobStore
from tests.unit.jobstore.stores import LEASE, ONE, OTHER, Clock, Numbers, lease_ends, redis_store

_MOVES = {(move.before, move.operation, move.after) for move in MOVES}

_owners = st.sampled_from((ONE, OTHER))
_attempts = st.integers(1, 2)
_items = st.one_of(
    st.builds(lambda a, s: Item("job", a, "advance", s), _attempts, st.integers(-1, 1)),
    st.builds(lambda a, s, i: Item("job", a, "unit", s, i), _attempts, st.integers(0, 1), st.integers(0, 2)),
    st.builds(lambda a: Item("job", a, "close"), _attempts),
)
_flags = st.booleans()
_OPERATIONS = st.one_of(
    st.tuples(st.just("submit")),
    st.tuples(st.just("wait"), st.sampled_from((1.0, LEASE, 61.0, -30.0))),
    st.tuples(st.just("leases end")),
    st.tuples(st.just("claim"), _items, _owners),
    st.tuples(st.sampled_from(("release", "pending", "closed", "keep", "beat")), st.integers(0, 9)),
    st.tuples(st.sampled_from(("record", "finish")), st.integers(0, 9), _flags, st.integers(1, 2)),
    st.tuples(st.just("open"), st.integers(0, 9), st.integers(0, 1), _flags, _flags),
    st.tuples(st.just("sent"), st.integers(0, 9), st.integers(0, 1)),
    st.tuples(st.just("end"), st.sampled_from((JobState.CANCELLED, JobState.FAILED)), _flags),
    st.tuples(st.just("retry"), _flags),
    st.tuples(st.sampled_from(("discard", "overdue", "active", "job"))),
    st.tuples(st.just("look"), st.sampled_from((-1.0, 5.0, 60.0)), _flags, st.sampled_from((0.0, 20.0))),
)


class Side:
    """One of the two, and the claims it gave."""

    def __init__(self, store: JobStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.claims: list[Claim] = []

    def phase(self) -> Phase:
        assert isinstance(self.store, MemoryJobStore)
        return _phase(self.store.job("job"), self.store._jobs["job"].committing)

    def do(self, what: str, *args: Any) -> Any:
        try:
            return getattr(self, f"_{what}", lambda *args: self._plain(what, *args))(*args)
        except LayerfarmError as error:
            return str(error)

    def _plain(self, what: str, *args: Any) -> Any:
        if what in ("discard", "job", "look"):
            args = ("job", *args)
        return getattr(self.store, what)(*args)

    def _submit(self) -> Any:
        return self.store.submit("job", "toy", "{}", 2)

    def _claim(self, item: Item, owner: Any) -> Any:
        answer = self.store.claim(item, owner)
        if isinstance(answer, Claim):
            self.claims.append(answer)
        return answer

    def _under(self, number: int, operation: Callable[[Claim], Any]) -> Any:
        return operation(self.claims[-1 - number]) if number < len(self.claims) else None

    def _and_claim(self, number: int, operation: Callable[[Claim], Answer], times: int) -> Any:
        answers = [self._under(number, operation) for _ in range(times)]
        if answers[0] is not None and answers[0].claim is not None:
            self.claims.append(answers[0].claim)
        return answers

    def _record(self, number: int, joins: bool, times: int) -> Any:
        def record(claim: Claim) -> Answer:
            item = claim.item
            join = Item(item.job_id, item.attempt, "advance", item.stage)
            return self.store.record_result(claim, {"of": claim.token}, then=join if joins else None)

        return self._under(number, lambda claim: claim.unit) and self._and_claim(number, record, times)

    def _finish(self, number: int, closes: bool, times: int) -> Any:
        def finish(claim: Claim) -> Answer:
            close = claim.item.close if closes else None
            return self.store.finish(claim, JobState.SUCCEEDED, result="{}", then=close)

        return self._and_claim(number, finish, times)

    def _release(self, number: int) -> Any:
        return self._under(number, lambda claim: self.store.release(claim, counts=number % 2 == 0))

    def _pending(self, number: int) -> Any:
        return self._under(number, self.store.pending)

    def _closed(self, number: int) -> Any:
        closes = self._under(number, lambda claim: claim.item.what == "close")
        return closes and self._under(number, lambda claim: self.store.closed(claim, clean=number % 3 > 0))

    def _keep(self, number: int) -> Any:
        closes = self._under(number, lambda claim: claim.item.what == "close")
        return closes and self._under(number, lambda claim: self.store.keep(claim, 100))

    def _beat(self, number: int) -> Any:
        return self._under(number, lambda claim: self.store.beat(claim, number))

    def _open(self, number: int, stage: int, commits: bool, taken: bool) -> Any:
        units = [Unit(params={"n": n}, bytes=10) for n in range(1 if taken else 2)]

        def open_stage(claim: Claim) -> Answer:
            unit = Item(claim.item.job_id, claim.item.attempt, "unit", stage, 0) if taken else None
            return self.store.open_stage(claim, stage, "stage", Numbers(), units, commits=commits, then=unit)

        return self._and_claim(number, open_stage, 1)

    def _sent(self, number: int, stage: int) -> Any:
        return self._under(number, lambda claim: self.store.sent(claim, stage))

    def _end(self, state: JobState, forced: bool) -> Any:
        return self.store.end("job", state, forced=forced)

    def _retry(self, restart: bool) -> Any:
        return self.store.retry("job", restart=restart)

    def _look(self, quiet: float, all_queued: bool, longest: float) -> Any:
        lost = self.store.look("job", quiet, all_queued, longest)
        return lost.attempt, lost.reason, sorted(map(str, lost.items))


@pytest.mark.large
@settings(deadline=None, max_examples=150)
@given(st.lists(_OPERATIONS, max_size=60))
def test_both_stores_answer_alike(operations: list[tuple[Any, ...]]) -> None:
    clock = Clock()
    with mock.patch.object(time, "time", clock), fakeredis.FakeRedis(decode_responses=True) as client:
        sides = [Side(redis_store(client), clock), Side(MemoryJobStore(clock), clock)]
        phase = Phase.ABSENT
        for what, *args in [("submit",), *operations]:
            if what == "wait":
                clock.goes_on(*args)
                continue
            if what == "leases end":
                lease_ends(clock, *(side.store for side in sides))
                continue
            claims = len(sides[1].claims)
            in_redis, in_memory = (side.do(what, *args) for side in sides)
            assert in_redis == in_memory, (what, args)
            before, phase = phase, sides[1].phase()
            operations_done = [{"open": "open_stage", "record": "record_result"}.get(what, what)]
            operations_done += ["claim"] * (len(sides[1].claims) - claims)
            assert before == phase or any((before, each, phase) in _MOVES for each in operations_done), (what, args)


def _phase(record: JobRecord, committing: bool) -> Phase:
    """By the record; ``committing``, which it does not tell."""
    if record.kept is not None:
        return Phase.KEPT
    if record.state.final:
        return Phase.ENDED
    if record.ending is not None:
        return Phase.ENDING
    if record.state is JobState.QUEUED:
        return Phase.QUEUED
    return Phase.COMMITTING if committing else Phase.RUNNING
