"""The table of states is whole, and drawn in docs/architecture.md."""

from __future__ import annotations

from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.states import MOVES, Phase
from tests.figures import STATE_ARROWS, STATE_BOXES


def test_picture_of_the_documentation_has_every_state_and_every_move() -> None:
    assert set(STATE_BOXES) == set(Phase) - {Phase.ABSENT}
    assert set(STATE_ARROWS) == {(move.before, move.after) for move in MOVES if move.before is not Phase.ABSENT}


def test_every_operation_is_one_of_the_store() -> None:
    assert {move.operation for move in MOVES} <= set(dir(JobStore))


def test_every_job_can_end() -> None:
    ends = {Phase.ENDED}
    for _ in Phase:
        ends |= {move.before for move in MOVES if move.after in ends}
    assert ends == set(Phase)
