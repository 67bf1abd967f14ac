"""The engine under every schedule of few deviations, and under some thousand random ones; and that faults are found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerfarm.jobs.flows.base import Context
from layerfarm.worker.jobstore.model import Answer, Claim, Item, Status
from layerfarm.worker.model import JobState
from tests.explorer.memory_store import MemoryJobStore

from . import farm as model
from .__main__ import exhaust, explore
from .scenarios import SCENARIOS

ANY = ("",)
"""One deviation, whatever it is."""
PAUSED = ("pause", "wake", "EIO")
"""A process is paused, wakes when its lease has run out, and meets an error on its host."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_goes_wrong_with_one_deviation(scenario: str) -> None:
    assert list(exhaust(scenario, ANY)) == []


@pytest.mark.parametrize("scenario", ["one_build", "cancelled", "retried_anew"])
def test_nothing_goes_wrong_where_one_is_paused_anywhere_and_wakes_anywhere_to_an_error(scenario: str) -> None:
    assert list(exhaust(scenario, PAUSED)) == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_goes_wrong_in_random_schedules(scenario: str) -> None:
    assert list(explore(scenario, 20261128, 500)) == []


# --- the explorer sees what it is there to see ------------------------------------------------------


def test_tag_that_is_not_given_once_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(self: model.Farm, context: Context, tag: str) -> None:
        self.disk.moves.append((context.job_id, tag))

    monkeypatch.setattr(model.Farm, "_publish", publish)
    found = next(each for each in exhaust("two_builds_of_one_tag", ANY) if "went back" in each.what)
    assert list(found.deviations.values()) == ["pause"]


def test_cancel_of_a_job_that_commits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    end = MemoryJobStore.end
    monkeypatch.setattr(MemoryJobStore, "end", lambda self, *args, **options: end(self, *args, forced=True))
    assert any("was cancelled and has given its tag" in each.what for each in exhaust("cancelled", ANY))


def test_submission_that_is_not_the_same_when_repeated_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = MemoryJobStore.submit

    def forgetful(self: MemoryJobStore, job_id: str, *args: object, **options: object) -> bool:
        return job_id not in self._jobs and submit(self, job_id, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryJobStore, "submit", forgetful)
    found = next(exhaust("full_queue", ANY))
    assert list(found.deviations.values()) == ["lose reply"]


def test_the_end_by_a_former_claim_holder_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = MemoryJobStore.finish

    def unfenced(self: MemoryJobStore, claim: Claim, ending: JobState, **options: object) -> Answer:
        answer = finish(self, claim, ending, **options)  # type: ignore[arg-type]
        if answer.status is Status.STALE and ending is JobState.FAILED:
            return self.end(claim.item.job_id, ending, error=options["error"], forced=True)  # type: ignore[arg-type]
        return answer

    monkeypatch.setattr(MemoryJobStore, "finish", unfenced)
    found = next(exhaust("one_build", PAUSED))
    assert "was healthy and failed" in found.what
    assert [each.partition(" ")[0] for each in found.deviations.values()] == ["pause", "wake", "EIO"]


def test_message_of_an_earlier_attempt_that_counts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = MemoryJobStore.claim

    def any_attempt(self: MemoryJobStore, item: Item, owner: object) -> object:
        job = self._jobs.get(item.job_id)
        current = item if job is None else Item(item.job_id, job.attempt, item.what, item.stage, item.index)
        found = claim(self, current, owner)  # type: ignore[arg-type]
        return replace(found, item=item) if isinstance(found, Claim) else found

    monkeypatch.setattr(MemoryJobStore, "claim", any_attempt)
    assert next(explore("retried_anew", 1, 6000), None), "work of an earlier attempt was done unseen"
