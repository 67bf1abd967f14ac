"""Requests refuse what no worker could do, before anything is queued."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from layerfarm.jobs.errors import AmbiguousReference, RequestError
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import BuildRequest, HistoryOptions, ImageRef
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.unit.image.images import LAX, NOT_RFC3339, RFC3339, tar
from tests.unit.relayer.images import ref, two_platforms


def test_the_platform_of_a_build_is_that_of_its_base() -> None:
    image = ImageRef(store=Path("/s"))
    BuildRequest(rootfs=Path("/r"), image=image, base=image, platform="linux/arm64")
    with pytest.raises(ValidationError, match="base"):
        BuildRequest(rootfs=Path("/r"), image=image, platform="linux/arm64")


def test_a_build_goes_on_the_image_of_its_platform(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    two_platforms(layout, [tar(("f", b"1")), tar(("g", b"2"))], "base")
    (tmp_path / "tree").mkdir()
    base = ref(layout, "base")
    for platform, below in (("linux/amd64", 2), ("linux/arm64", 1)):
        request = BuildRequest(rootfs=tmp_path / "tree", image=ref(layout, "new"), base=base, platform=platform)
        local.run(request, Policy(shards=1, threads=1), 1)
        made, old = resolve(layout, "new"), resolve(layout, "base", platform)
        assert made.config.architecture == old.config.architecture
        assert made.manifest.layers[:-1] == old.manifest.layers and len(old.manifest.layers) == below
    with pytest.raises(AmbiguousReference):
        local.run(BuildRequest(rootfs=tmp_path / "tree", image=ref(layout, "new"), base=base), Policy(), 1)


def test_the_time_of_a_history_entry_is_rfc_3339() -> None:
    for text in RFC3339:
        assert HistoryOptions(created=text).created == text
    for text in (*NOT_RFC3339, *LAX):
        with pytest.raises(ValidationError, match="RFC 3339"):
            HistoryOptions(created=text)


def test_an_image_is_named_by_a_path_and_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text, store, tag in (("/s", "/s", "latest"), ("/s:t", "/s", "t"), ("s:a:b", tmp_path / "s", "a:b")):
        assert ImageRef.parse(text) == ImageRef(store=Path(store), tag=tag)
    for text, fault in (("", "no path"), (":t", "no path"), ("/s:", "empty tag")):
        with pytest.raises(RequestError, match=fault):
            ImageRef.parse(text)


@pytest.mark.parametrize(("path", "fault"), [("relative", "must be absolute"), ("/a\0b", "NUL")])
def test_a_path_that_leads_elsewhere_on_a_worker_is_refused(path: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        ImageRef(store=Path(path))
