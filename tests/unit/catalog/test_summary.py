"""The summary of a run, for CI."""

from __future__ import annotations

import json
from pathlib import Path

from layerfarm.jobs.errors import JobFailed, NotInRegistry
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.state import ImageState
from layerfarm.worker.cli.main import main
from tests.unit.catalog.works import catalog_file, planned, ran
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import manifest, without


def images(directory: Path) -> Layout:
    layout = Layout.create(directory / "images")
    for tag in ("app:1", "app:2"):
        image(layout, [tar(("base", b"x" * 5000)), tar((tag, tag.encode() * 1000))], tag=tag)
    return layout


def test_a_good_run_has_counts_bytes_and_no_failure(tmp_path: Path) -> None:
    layout = images(tmp_path)
    layout.tag("chart:1", manifest(layout, "application/vnd.chart", b"chart"))
    path = catalog_file(tmp_path, "{transform: squash}")
    report = ran(path)
    summary = report.summary
    assert (summary.exit_code, summary.failures) == (0, ())
    assert summary.meaning == "no image failed, and all sources were read"
    assert summary.states == {"done": 2, "skipped": 1}
    assert report.after is not None
    assert (summary.stored_before, summary.stored_after) == (report.before.stored, report.after.stored)
    assert (summary.pulled_before, summary.pulled_after) == (report.before.pulled, report.after.pulled)
    assert summary.stored_after != summary.stored_before


def test_of_a_plan_the_bytes_are_those_predicted(tmp_path: Path) -> None:
    images(tmp_path)
    report = planned(catalog_file(tmp_path, "{transform: rechunk, only-if-saves: off}"))
    assert report.planned is not None
    assert report.summary.stored_after == report.planned.stored
    assert report.summary.states == {"planned": 2}


def test_failures_have_the_class_of_their_error(tmp_path: Path) -> None:
    layout = images(tmp_path)
    without(layout.path, layout.find("app:2")[0].digest)
    path = catalog_file(tmp_path, "{transform: squash}")
    path.write_text(path.read_text().replace("{layout: images}", "{layout: images}, {layout: absent}"))
    summary = ran(path).summary
    assert summary.exit_code == 1
    assert summary.states == {"done": 1, "failed": 1}
    assert summary.meaning == "images that failed: 1, sources or parts of them that cannot be read: 1"
    image_failed, source_missed = summary.failures
    assert (image_failed.where, image_failed.error_type) == ("app:2", "BlobNotFound")
    assert (source_missed.where, source_missed.error_type) == (str(tmp_path / "absent"), "NotALayout")


def test_of_a_job_on_a_farm_the_class_is_that_of_its_unit() -> None:
    state = ImageState(name="a:1").failed(JobFailed("broken", error_type="MalformedLayer"), "transform")
    assert (state.error, state.error_type) == ("broken", "MalformedLayer")
    assert ImageState(name="a:1").failed(JobFailed("broken"), "transform").error_type == "JobFailed"
    assert ImageState(name="a:1").failed(NotInRegistry("gone", where="x"), "fetch").error_type == "NotInRegistry"


def test_json_has_the_summary_and_the_exit_code_is_that(tmp_path: Path, capsys: object) -> None:
    images(tmp_path)
    path = catalog_file(tmp_path, "{transform: squash}")
    path.write_text(path.read_text().replace("{layout: images}", "{layout: images}, {layout: absent}"))
    code = main(["catalog", "run", str(path), "--json"])
    document = json.loads(capsys.readouterr().out)  # type: ignore[attr-defined]
    assert code == document["summary"]["exit_code"] == 1
    assert document["summary"]["failures"][0]["where"] == str(tmp_path / "absent")
