"""The table of states: whole, and what the documentation shows."""

from __future__ import annotations

from pathlib import Path

from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.states import MOVES, Phase, picture

_PAGE = Path(__file__).resolve().parents[3] / "docs/architecture.md"


def test_documentation_shows_the_table() -> None:
    assert f"```mermaid\n{picture()}\n```" in _PAGE.read_text()


def test_every_operation_is_one_of_the_store() -> None:
    assert {move.operation for move in MOVES} <= set(dir(JobStore))


def test_every_job_can_end() -> None:
    ends = {Phase.ENDED}
    for _ in Phase:
        ends |= {move.before for move in MOVES if move.after in ends}
    assert ends == set(Phase)
