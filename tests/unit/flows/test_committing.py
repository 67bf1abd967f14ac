"""The stage that makes the effect of a job visible: a cancel is too late after it, and its tag is set once."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.flows import Flows
from layerfarm.jobs.flows.base import Context, Request, Unit
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.flows.transforms import SquashRequest
from layerfarm.jobs.store import MEDIA_TYPE_LAYER, Layout
from layerfarm.worker.engine import local

FLOWS = Flows()
"""Layerfarm's own: those of other tests may be known in this process too."""
COMMITTING = {
    "analyze": None,
    "build": "publish",
    "flatten": None,
    "manifest": "write",
    "rebase": "publish",
    "rebase-check": None,
    "rechunk": "publish",
    "recompress": "publish",
    "repack": "publish",
    "squash": "publish",
    "strip": "publish",
    "unpack": None,  # a cancel removes the bundle, see test_unpack.py
    "verify": None,
}
"""By kind of job, the stage after which it cannot be cancelled."""


def test_stage_that_sets_a_tag_or_replaces_a_file_is_the_last_and_cannot_be_cancelled() -> None:
    expected = {kind: [] if name is None else [(name, len(FLOWS[kind].stages))] for kind, name in COMMITTING.items()}
    assert {
        kind: [(stage.name, number) for number, stage in enumerate(flow.stages, 1) if stage.commits]
        for kind, flow in FLOWS.items()
    } == expected


@pytest.fixture
def source(tmp_path: Path) -> ImageRef:
    """An image with one file."""
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs/file").write_text("content")
    image = ImageRef(store=Layout.create(tmp_path / "store").path, tag="source")
    local.run(BuildRequest(rootfs=tmp_path / "rootfs", image=image))
    return image


def before_publishing(ctx: Context, request: Request) -> Unit:
    """Run a job up to its last stage; return the only unit of that."""
    flow = FLOWS[request.kind]
    state = flow.begin(ctx, request)
    for stage in flow.stages[:-1]:
        state = stage.join(ctx, state, [stage.run(ctx, unit) for unit in stage.plan(ctx, state)])
    (unit,) = flow.stages[-1].plan(ctx, state)
    return unit


@pytest.mark.parametrize("kind", ["build", "squash"])
def test_publishing_again_does_not_set_a_tag_that_was_moved_meanwhile(source: ImageRef, kind: str) -> None:
    target = source.model_copy(update={"tag": "target"})
    requests: dict[str, Request] = {
        "build": BuildRequest(rootfs=source.store.with_name("rootfs"), image=target),
        "squash": SquashRequest(image=source, target=target),
    }
    ctx = Context("job", fenced=True)
    unit = before_publishing(ctx, requests[kind])
    publish = FLOWS[kind].stages[-1].run
    result = publish(ctx, unit)
    layout = Layout.open(source.store)
    assert layout.find("target")
    other = layout.put(b"another image", MEDIA_TYPE_LAYER)
    layout.tag("target", other)
    assert publish(ctx, unit) == result
    assert layout.names_only("target", other.digest)
