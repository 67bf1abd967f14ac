"""Cleaning after a job: an error keeps the outcome, and cleaning is tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

import pytest

from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Context, Flow, Policy, Request, Result, Stage, State, Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.engine.admission import Admission
from layerfarm.worker.engine.farm import CeleryRunner
from layerfarm.worker.engine.heartbeat import Heartbeat
from layerfarm.worker.engine.recovery import Recovery
from layerfarm.worker.jobstore.model import Claim, Item, Status
from layerfarm.worker.model import JobState
from tests.explorer.memory_store import MemoryJobStore
from tests.unit.jobstore.stores import CLOSE, ONE, START, Clock


class CleanedRequest(Request):
    kind = "cleaned"


class Store(MemoryJobStore):
    """Notes how cleaning went."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.cleaned: list[bool] = []

    def closed(self, claim: Claim, *, clean: bool = True) -> Status:
        self.cleaned.append(clean)
        return super().closed(claim, clean=clean)


class Farm:
    """One worker, and a flow of one unit that cannot be cleaned as often as ``troubles`` says."""

    def __init__(self, troubles: int) -> None:
        self.troubles = troubles
        self.clock = Clock()
        self.store = Store(self.clock)
        self.sent: list[Item] = []
        sender: Any = self
        no_equal_work: Any = None
        backlog: Any = None
        self.runner = CeleryRunner(
            self.store,
            ONE,
            no_equal_work,
            Heartbeat(self.store),
            sender,
            Recovery(self.store, no_equal_work, sender, backlog, every=5),
            Policy(),
            Admission(self.store),
        )
        stage: Stage[State] = Stage(
            "only", lambda ctx, state: [Unit(params={})], self.run, lambda ctx, state, results: state
        )
        self.flow = Flow(
            CleanedRequest, State, (stage,), lambda ctx, request: State(), lambda ctx, state: Result(), self.clean
        )
        self.breaks = False

    def send(self, items: Iterable[Item], traffic: Traffic = Traffic.INTERACTIVE) -> None:
        self.sent += items

    def run(self, ctx: Context, unit: Unit) -> dict[str, Any]:
        if self.breaks:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return {}

    def clean(self, ctx: Context, request: Request, succeeded: bool) -> None:
        if self.troubles:
            self.troubles -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("breaks", [False, True], ids=["succeeded", "failed"])
def test_job_that_cannot_be_cleaned_keeps_its_outcome_and_is_cleaned_again(
    monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    farm = Farm(troubles=2)
    farm.breaks = breaks
    monkeypatch.setitem(FLOWS, "cleaned", farm.flow)
    farm.store.submit("job", "cleaned", "{}", 1)
    outcome = JobState.FAILED if breaks else JobState.SUCCEEDED
    farm.runner.do(START)
    assert (farm.store.cleaned, farm.store.job("job").state) == ([False], outcome)
    assert farm.store.overdue() == []
    for cleaned in ([False, False], [False, False, True]):
        farm.clock.goes_on(3600)
        assert farm.store.overdue() == [CLOSE]
        farm.runner.do(CLOSE)
        assert (farm.store.cleaned, farm.store.job("job").state) == (cleaned, outcome)
    farm.clock.goes_on(3600)
    assert farm.store.overdue() == farm.sent == []
