"""The layouts that a request names, also one that cannot be read as a request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.inputs import release, stores_in, stores_of
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.leases import Leases

DIGEST = f"sha256:{'1' * 64}"


def request(*stores: Path) -> BuildRequest:
    image, base = (ImageRef(store=store, tag="a") for store in stores)
    return BuildRequest(rootfs=Path("/r"), image=image, base=base)


def test_a_request_of_another_version_names_the_same_layouts_as_ours(tmp_path: Path) -> None:
    ours = request(tmp_path / "a", tmp_path / "b")
    theirs = json.loads(ours.model_dump_json()) | {"new": [{"store": str(tmp_path / "c")}]}
    policy = Policy(stores=(tmp_path,))
    assert stores_in(ours.model_dump_json(), policy) == stores_of(ours, policy) == [tmp_path / "a", tmp_path / "b"]
    assert stores_in(json.dumps(theirs), policy) == [tmp_path / "a", tmp_path / "b", tmp_path / "c"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[" * 100_000,
        '{"store": 1}',
        '{"store": "relative"}',
        '{"store": "/etc"}',
        '{"store": "/\\u0000"}',
    ],
)
def test_files_written_by_a_stranger_lead_nowhere(text: str, tmp_path: Path) -> None:
    assert stores_in(text, Policy(stores=(tmp_path,))) == []


def test_release_ends_the_lease_in_every_layout(tmp_path: Path) -> None:
    stores = [tmp_path / "a", tmp_path / "b"]
    for store in stores:
        Layout.create(store)
        Leases(store).add("job", 60, [DIGEST])
        Leases(store).add("other", 60, [DIGEST])
    release("job", [*stores, tmp_path / "gone"])
    for store in stores:
        assert [lease.holder for lease in Leases(store).live(0)] == ["other"]
