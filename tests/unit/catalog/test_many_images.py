"""The work of a run grows as its images do: index.json is read and written a few times for many of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store import Descriptor, Layout, tag_group
from layerfarm.jobs.store import index as index_module
from layerfarm.jobs.store.index import IndexFile
from layerfarm.worker.catalog import planning
from tests.bench import scale
from tests.unit.catalog.works import catalog_file, costs, planned, ran, work_on
from tests.unit.image.images import image, tar

pytestmark = pytest.mark.large


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of readings, writes and whole parses of an index.json."""
    calls: Counter[str] = Counter()

    def counted(name: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        return call

    monkeypatch.setattr(IndexFile, "raw", counted("read", IndexFile.raw))
    monkeypatch.setattr(index_module, "rename_durably", counted("written", index_module.rename_durably))
    return calls


def images(directory: Path, count: int) -> None:
    layout = Layout.create(directory / "images")
    for number in range(count):
        layers = [tar(("base", b"base")), tar((f"opt/{number}", b"%d" % number))]
        image(layout, layers, tag=f"team/{number // 5}:{number % 5}")


@pytest.mark.parametrize("policy", ["{transform: squash}", "{transform: keep}", "{transform: rechunk}"])
def test_a_run_reads_and_writes_the_index_a_few_times_for_all_its_images(
    tmp_path: Path, traffic: Counter[str], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(tag_group, "_SECONDS", 3600.0)
    images(tmp_path, 20)
    path = catalog_file(tmp_path, policy)
    traffic.clear()
    assert {row.state for row in ran(path).images} == {"done"}
    assert traffic["written"] <= 4 + 1  # each of four threads that fetch; all new images with their proofs
    assert traffic["read"] <= 20 + 8


def test_a_run_with_nothing_to_do_reads_the_index_as_often_for_any_number_of_images(
    tmp_path: Path, traffic: Counter[str]
) -> None:
    for count in (5, 30):
        directory = tmp_path / str(count)
        directory.mkdir()
        images(directory, count)
        path = catalog_file(directory, "{transform: squash}")
        ran(path)
        traffic.clear()
        ran(path)
        assert traffic["read"] <= 20  # each of four threads that fetch reads two indexes
        assert traffic["written"] == 0


@pytest.mark.parametrize("policy", ["{transform: squash}", "{transform: keep}"])
def test_a_run_with_nothing_to_do_reads_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    images(tmp_path, 8)
    path = catalog_file(tmp_path, policy)
    first = ran(path)
    reads: Counter[str] = Counter()
    real = Layout.open_blob

    def counted(layout: Layout, descriptor: Descriptor) -> Any:
        reads[descriptor.media_type] += 1
        return real(layout, descriptor)

    monkeypatch.setattr(Layout, "open_blob", counted)
    assert costs(ran(path)) == costs(first)
    assert not reads
    # One tag moves: only its image is read.
    source = Layout.open(tmp_path / "images")
    image(source, [tar(("base", b"base")), tar(("new", b"new"))], tag="team/0:1")
    old = {row.name: row.old for row in first.images}
    second = {row.name: row.old for row in ran(path).images}
    assert [name for name in old if old[name] != second[name]] == ["team/0:1"]
    assert reads["application/vnd.oci.image.manifest.v1+json"] > 0


def test_a_report_reads_the_index_once(tmp_path: Path, traffic: Counter[str]) -> None:
    from layerfarm.worker.catalog.report import report_of

    images(tmp_path, 10)
    path = catalog_file(tmp_path, "{transform: squash}")
    ran(path)
    work = work_on(path)
    traffic.clear()
    report_of(work, work.known())
    assert traffic == {"read": 1}


def test_the_layers_of_an_image_are_planned_once_for_all_that_a_report_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path, 10)
    calls: Counter[str] = Counter()
    real = planning.layers_to_be

    def counted(*args: Any) -> Any:
        calls["layers_to_be"] += 1
        return real(*args)

    monkeypatch.setattr(planning, "layers_to_be", counted)
    assert planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}")).duplicates is not None
    assert calls["layers_to_be"] == 10


def test_equal_components_of_many_images_are_one_object(tmp_path: Path) -> None:
    images(tmp_path, 10)
    work = work_on(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}"))
    work.plan(work.fetch(), keep=False)
    assert work.joint is not None
    parts = [part for member in work.joint.members for part in member.analysis.parts]
    assert len({id(part) for part in parts}) == len(set(parts)) < len(parts)
    layers = [layer for member in work.joint.members for layer in member.original.layers]
    assert len({id(layer) for layer in layers}) == len(set(layers)) < len(layers)


def test_the_benchmark_plans_and_runs_small_catalogs_too() -> None:
    plan = scale.plan_and_report(20, components=110)
    assert (plan["images"], plan["left"]) == (20, 0)
    assert 0 < plan["pulled"] < 1
    assert scale.run_tiny(3)["images"] == 3
