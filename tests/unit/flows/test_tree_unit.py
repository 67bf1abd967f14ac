"""Where the new tree is written: beside the comparison if most of it was read, else beside the layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.compress import Compression
from layerfarm.jobs.flows.base import FileRef
from layerfarm.jobs.flows.layer_state import LayeringState
from layerfarm.jobs.flows.requests import LayerOptions
from layerfarm.jobs.flows.survey import Reading, Survey
from layerfarm.jobs.flows.tree_unit import plan_beside_comparing, plan_beside_layer

REF = FileRef(path="f", size=0, sha256="0" * 64)


def state(suspects: int | None, *, dropped: int = 0, differing: int = 0, exact: bool = False) -> LayeringState:
    """A tree of ten entries; ``suspects``: how many of them were read, None: all, nothing being known."""
    reading = None if suspects is None else Reading(suspects=REF, script=REF, entries=suspects, dropped=dropped)
    return LayeringState(
        store=Path("/store"),
        rootfs=Path("/rootfs"),
        options=LayerOptions(),
        compression=Compression.GZIP,
        survey=Survey(walk=REF, entries=10, racy=0, reading=reading),
        differing=differing,
        exact=exact,
    )


@pytest.mark.parametrize("suspects", [None, 10, 6])
@pytest.mark.parametrize("differing", [0, 6])
def test_most_was_read(suspects: int | None, differing: int) -> None:
    (unit,) = plan_beside_comparing(state(suspects, exact=True))
    assert unit.params["trees"]["exact"]
    assert plan_beside_layer(state(suspects, differing=differing, exact=True)) == []


@pytest.mark.parametrize("suspects", [0, 1, 5])
def test_little_was_read(suspects: int) -> None:
    assert plan_beside_comparing(state(suspects, dropped=1)) == []
    (unit,) = plan_beside_layer(state(suspects, dropped=1, differing=1))
    assert not unit.params["trees"]["exact"]
    (unit,) = plan_beside_layer(state(suspects, dropped=1, exact=True))
    assert unit.params["trees"]["exact"]


def test_nothing_differs_and_nobody_wants_it_exactly() -> None:
    assert plan_beside_layer(state(1, dropped=1)) == []


def test_nothing_was_touched() -> None:
    untouched = state(0, exact=True)
    assert plan_beside_comparing(untouched) == plan_beside_layer(untouched) == []
