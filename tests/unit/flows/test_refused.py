"""A refused job changes nothing at the paths that its submitter chose."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from layerfarm.jobs.errors import OutsideAllowedRoots
from layerfarm.jobs.flows import Flows
from layerfarm.jobs.flows.base import Context, FileRef, Policy
from tests.trees import directory, file, read_tree, tree

FLOWS = Flows()
"""Layerfarm's own: those of other tests may be known in this process too."""
JOB = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@pytest.mark.parametrize("succeeded", [True, False])
@pytest.mark.parametrize("link", [False, True], ids=["", "by-a-link"])
@pytest.mark.parametrize("kind", sorted(FLOWS))
def test_nothing_is_removed_where_the_operator_does_not_let_the_job(
    tmp_path: Path, kind: str, link: bool, succeeded: bool
) -> None:
    mine = {f"store/.layerfarm/work/{JOB}/mine": file(b"x"), f"store/.layerfarm/work/{JOB}_2/mine": file(b"x")}
    staged = {f"{place}.layerfarm-{JOB}/mine": file(b"x") for place in ("", "bundle/")}
    empty = {**staged, "output": directory()}
    outside = tree(tmp_path / "outside", mine | empty)
    place = outside
    (tmp_path / "allowed").mkdir()
    if link:
        place = tmp_path / "allowed/link"
        place.symlink_to(outside)
    before = read_tree(outside)
    image = SimpleNamespace(store=place / "store", tag="tag", digest=None)
    names = {name: place / name for name in ("rootfs", "bundle", "output")}
    request = SimpleNamespace(image=image, target=image, base=image, store=image.store, **names)
    policy = Policy(roots=(tmp_path / "allowed",), stores=(tmp_path / "allowed",))
    for attempt in (1, 2):
        with suppress(OutsideAllowedRoots):
            FLOWS[kind].clean(Context(JOB, policy, attempt=attempt, fenced=True), request, succeeded)
    assert read_tree(outside) == before
    assert os.listdir(tmp_path / "allowed") == (["link"] if link else [])


@pytest.mark.parametrize("path", ["/etc/passwd", "../shadow", "a/b", "..", ".", "", "a\0b"])
def test_file_of_a_unit_is_in_the_work_directory(path: str) -> None:
    with pytest.raises(ValidationError):
        FileRef(path=path, size=1, sha256="0" * 64)
