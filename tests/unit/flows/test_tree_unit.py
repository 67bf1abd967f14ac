"""The new tree is written beside the comparison if most of it was read, else beside the layer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from layerfarm.jobs.compress import Compression
from layerfarm.jobs.flows.base import Context, FileRef, Stage, Unit
from layerfarm.jobs.flows.layering import LayeringState, layering_stages
from layerfarm.jobs.flows.requests import ImageRef, LayerOptions
from layerfarm.jobs.flows.surveying import Incremental, Survey
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.store import Descriptor

REF = FileRef(path="f", size=0, sha256="0" * 64)
LAYER = (Descriptor(mediaType="application/octet-stream", digest=f"sha256:{REF.sha256}", size=0), "sha256:0")


class Base(NamedTuple):
    """The part of an image that the plans read."""

    layers: list[tuple[Descriptor, str]]


def stages(*layers: tuple[Descriptor, str]) -> tuple[Stage[LayeringState], ...]:
    base: Resolved = Base(list(layers))  # type: ignore[assignment]
    return layering_stages(LayeringState, lambda ctx, state: iter(()), lambda state: base, "test")


_, _, COMPARE, PACK, _ = stages(LAYER)


def tree_units(stage: Stage[LayeringState], state: LayeringState, **more: int) -> list[Unit]:
    return [unit for unit in stage.plan(Context("job", **more), state) if "new_tree" in unit.params]


def plan_beside_comparing(state: LayeringState) -> list[Unit]:
    return tree_units(COMPARE, state)


def plan_beside_layer(state: LayeringState) -> list[Unit]:
    return tree_units(PACK, state)


def state(dirty: int | None, *, dropped: int = 0, differing: int = 0, refresh: bool = False) -> LayeringState:
    """A tree of ten entries; ``dirty``: how many of them were read, None: all, nothing being known."""
    part = None
    if dirty is not None:
        files = {"walk": REF, "script": REF} if dirty or dropped else {}
        part = Incremental(tree="sha256:0", entries=dirty, dropped=dropped, **files)
    return LayeringState(
        store=Path("/store"),
        rootfs=Path("/rootfs"),
        image=ImageRef(store=Path("/store")),
        options=LayerOptions(),
        compression=Compression.GZIP,
        survey=Survey(walk=REF, entries=10, racy=0, incremental=part),
        differing=differing,
        refresh=refresh,
    )


@pytest.mark.parametrize("dirty", [None, 10, 6])
@pytest.mark.parametrize("differing", [0, 6])
def test_most_was_read(dirty: int | None, differing: int) -> None:
    (unit,) = plan_beside_comparing(state(dirty, refresh=True))
    assert unit.params["new_tree"]["refresh"]
    assert plan_beside_layer(state(dirty, differing=differing, refresh=True)) == []


@pytest.mark.parametrize("dirty", [0, 1, 5])
def test_little_was_read(dirty: int) -> None:
    assert plan_beside_comparing(state(dirty, dropped=1)) == []
    (unit,) = plan_beside_layer(state(dirty, dropped=1, differing=1))
    assert not unit.params["new_tree"]["refresh"]
    (unit,) = plan_beside_layer(state(dirty, dropped=1, refresh=True))
    assert unit.params["new_tree"]["refresh"]


def test_nothing_differs_and_an_exact_tree_is_not_wanted() -> None:
    assert plan_beside_layer(state(1, dropped=1)) == []


def test_nothing_was_touched() -> None:
    untouched = state(0, refresh=True)
    assert plan_beside_comparing(untouched) == plan_beside_layer(untouched) == []


@pytest.mark.parametrize("differing", [0, 6])
def test_nothing_to_compare_with(differing: int) -> None:
    _, _, compare, pack, _ = stages()
    assert tree_units(compare, state(None)) == []
    assert len(tree_units(pack, state(None, differing=differing))) == 1


def test_nothing_to_compare_with_in_a_job_that_older_workers_may_continue() -> None:
    _, _, compare, pack, _ = stages()
    assert len(tree_units(compare, state(None), format=2)) == 1
    assert tree_units(pack, state(None, differing=6), format=2) == []
