"""A job that did not succeed leaves no bundle, even where the bundle was in place already; of others it leaves all."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.flows.base import Context
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, UnpackRequest
from layerfarm.jobs.flows.unpack import UNPACK
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local


@pytest.fixture
def request_of(tmp_path: Path) -> UnpackRequest:
    """An image of one file, and the request to unpack it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    image = ImageRef(store=Layout.create(tmp_path / "store").path)
    local.run(BuildRequest(rootfs=tree, image=image))
    return UnpackRequest(image=image, bundle=tmp_path / "bundle")


def unpacked(request: UnpackRequest, job_id: str) -> Context:
    """The job ran up to the end of its only unit."""
    ctx = Context(job_id)
    (unit,) = UNPACK.stages[0].plan(ctx, UNPACK.begin(ctx, request))
    UNPACK.stages[0].run(ctx, unit)
    assert (request.bundle / "rootfs" / "file").read_text() == "content"
    return ctx


def test_job_that_did_not_succeed_takes_its_bundle_back(request_of: UnpackRequest) -> None:
    ctx = unpacked(request_of, "one")
    UNPACK.clean(ctx, request_of, False)
    assert not request_of.bundle.exists()
    # And again, should the first time have been interrupted at its end.
    UNPACK.clean(ctx, request_of, False)


def test_job_that_succeeded_leaves_it(request_of: UnpackRequest) -> None:
    UNPACK.clean(unpacked(request_of, "one"), request_of, True)
    assert (request_of.bundle / "config.json").is_file()
    assert not list(request_of.bundle.parent.glob(".bundle.*"))


def test_directory_that_was_there_keeps_what_it_held(request_of: UnpackRequest) -> None:
    request_of.bundle.mkdir()
    (request_of.bundle / "notes").write_text("mine")
    UNPACK.clean(unpacked(request_of, "one"), request_of, False)
    assert [path.name for path in request_of.bundle.iterdir()] == ["notes"]


def test_bundle_of_another_job_is_left_alone(request_of: UnpackRequest) -> None:
    unpacked(request_of, "one")
    UNPACK.clean(Context("two"), request_of, False)
    assert (request_of.bundle / "rootfs" / "file").is_file()
