"""Messages of a transform grow neither with the layers of an image nor with the images of an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows import Flows
from layerfarm.jobs.flows.base import Context, Policy, Request
from layerfarm.jobs.flows.transforms import (
    FlattenRequest,
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
)
from layerfarm.jobs.relayer.indexes import read_images
from layerfarm.jobs.store import Layout
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import entry, index, ref

LAYERS = 100
MOST = 4096
"""Bytes."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An image ``many`` of many layers on ``old``, ``new`` to put it on, and an index ``set`` of many images."""
    layout = Layout.create(tmp_path / "store")
    layers = [tar((f"usr/share/doc/{n}", b"x" * n), (f"usr/bin/{n}", b"%d" % n)) for n in range(LAYERS)]
    image(layout, layers, tag="many")
    image(layout, layers[:50], tag="old")
    image(layout, [tar((f"base/{n}", b"y")) for n in range(50)], tag="new")
    made = [image(layout, layers[:3], architecture=f"arch{n}", tag="one") for n in range(20)]
    layout.untag("one")
    index(layout, map(entry, made), "set")
    return layout


def requests(layout: Layout, tmp_path: Path, tag: str) -> dict[str, Callable[[], Request]]:
    common: dict[str, Any] = {"image": ref(layout, tag), "target": ref(layout, "made")}
    bases = {"old_base": ref(layout, "old"), "new_base": ref(layout, "new"), "accept": "refuse"}
    return {
        "squash": lambda: SquashRequest(**common),
        "strip": lambda: StripRequest(**common, paths=["usr/share/doc"]),
        "recompress": lambda: RecompressRequest(**common, compress="zstd"),
        "rechunk": lambda: RechunkRequest(**common, budget=60),
        "rebase": lambda: RebaseRequest(**common, **bases),
        "flatten": lambda: FlattenRequest(image=ref(layout, tag), output=tmp_path / "flat", form="tar"),
    }


KINDS = ("squash", "strip", "recompress", "rechunk", "rebase", "flatten")
CASES = [(kind, tag) for kind in KINDS for tag in ("many", "set") if (kind, tag) != ("rebase", "set")]


@pytest.mark.large
@pytest.mark.parametrize(("kind", "tag"), CASES)
def test_states_units_and_results_of_units_are_small(layout: Layout, tmp_path: Path, kind: str, tag: str) -> None:
    request = requests(layout, tmp_path, tag)[kind]()
    flow = Flows()[request.kind]
    ctx = Context("local-1", Policy(shards=1, threads=1))
    sizes: dict[str, int] = {}
    state = flow.begin(ctx, request)
    for stage in flow.stages:
        sizes[f"state before {stage.name}"] = len(state.model_dump_json())
        units = list(stage.plan(ctx, state))
        results = [json.loads(json.dumps(stage.run(ctx, unit))) for unit in units]
        sizes[f"units of {stage.name}"] = max((len(unit.model_dump_json()) for unit in units), default=0)
        if stage is not flow.stages[-1]:  # that is the job's own result, which is for who asked
            sizes[f"results of {stage.name}"] = max((len(json.dumps(result)) for result in results), default=0)
        state = stage.join(ctx, type(state).model_validate_json(state.model_dump_json()), results)
    flow.finish(ctx, state)
    flow.clean(ctx, request, True)
    assert {what: size for what, size in sizes.items() if size > MOST} == {}
    if kind != "flatten":
        assert len(read_images(layout, "made").images) == (20 if tag == "set" else 1)
