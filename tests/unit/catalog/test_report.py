"""The report: its numbers beside a count that reads the layout itself, its schema, and its page for everyone."""

from __future__ import annotations

import gzip
import json
import random
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import zstandard
from jsonschema import validate

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.costs import totals
from layerfarm.worker.catalog.outcomes import outcome_of
from layerfarm.worker.catalog.page import MOST, page
from layerfarm.worker.catalog.plot import plot_of
from layerfarm.worker.catalog.quantities import size_text
from layerfarm.worker.catalog.report import ImageRow, Report, report_of
from layerfarm.worker.catalog.state import ImageState, LastRun
from layerfarm.worker.cli.catalog_text import report_lines
from tests.schemas import schemas
from tests.unit.catalog.html_page import Table, check, tables
from tests.unit.catalog.works import catalog_file, planned, ran, work_on
from tests.unit.compress.chunked_reader import Blob, toc_of
from tests.unit.image.images import image, tar

TAGS = 3
REPOSITORIES = ("data/db", "web/front")
POLICY = "{transform: rechunk, compress: 'zstd:chunked', only-if-saves: off}"


def noise(seed: object, size: int) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def images(directory: Path) -> None:
    """Repositories whose images share most components; one file of a component of many changes with each tag."""
    layout = Layout.create(directory / "images")
    for repository in REPOSITORIES:
        for tag in range(1, TAGS + 1):
            shared = [(f"opt/{part}/data", noise((part, tag if part == tag else 0), 30_000)) for part in range(6)]
            own = [(f"srv/app/{part}", noise((part, tag if part == 0 else repository), 5_000)) for part in range(4)]
            model = ("usr/app/model", noise("model", 600_000))
            changing = [("usr/app/code", noise((repository, tag), 500)), model]
            image(
                layout,
                [tar(*shared), tar(*own, *changing)],
                tag=f"{repository}:{tag}.0",
                created=f"2024-01-0{tag}T00:00:00Z",
            )


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("catalog")
    images(directory)
    return catalog_file(directory, POLICY)


@pytest.fixture(scope="module")
def prediction(catalog: Path) -> Report:
    return planned(catalog)


@pytest.fixture(scope="module")
def report(catalog: Path, prediction: Report) -> Report:
    return ran(catalog)


# --- a count of its own ---------------------------------------------------------------------------


class Counted:
    """The images of a layout, read from its files."""

    def __init__(self, layout: Path, prefix: str = "") -> None:
        self.layout = layout
        index = json.loads((layout / "index.json").read_text())
        tops = {
            each.get("annotations", {}).get("org.opencontainers.image.ref.name"): each for each in index["manifests"]
        }
        names = [f"{repository}:{tag}.0" for repository in REPOSITORIES for tag in range(1, TAGS + 1)]
        self.digests = {name: tops[prefix + name]["digest"] for name in names}
        self.manifests = {name: json.loads(self.blob(digest)) for name, digest in self.digests.items()}

    def blob(self, digest: str) -> bytes:
        return (self.layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    def layers(self, name: str) -> list[str]:
        return [layer["digest"] for layer in self.manifests[name]["layers"]]

    def blobs(self, *names: str) -> set[str]:
        return {blob for name in names for blob in (*self.layers(name), self.manifests[name]["config"]["digest"])}

    def size(self, digests: set[str]) -> int:
        return sum(len(self.blob(digest)) for digest in digests)

    def pulls(self) -> Iterator[tuple[str, str]]:
        for repository in REPOSITORIES:
            for tag in range(1, TAGS):
                yield f"{repository}:{tag}.0", f"{repository}:{tag + 1}.0"

    def pull(self, old: str, new: str) -> int:
        return self.size(self.blobs(new) - self.blobs(old))

    def pull_in_part(self, old: str, new: str) -> int:
        """The configuration, the tables of new layers, and the files in them that no layer of ``old`` has."""
        held = {entry["digest"] for layer in self.manifests[old]["layers"] for entry in self.files(layer)}
        missing = [layer for layer in self.manifests[new]["layers"] if layer["digest"] not in self.layers(old)]
        count = len(self.blob(self.manifests[new]["config"]["digest"]))
        for layer in missing:
            for part in ("manifest-position", "tarsplit-position"):
                count += int(layer["annotations"][f"io.github.containers.zstd-chunked.{part}"].split(":")[1])
            new_files = (entry for entry in self.files(layer) if entry["digest"] not in held)
            count += sum(entry["endOffset"] - entry["offset"] for entry in new_files)
        return count

    def files(self, layer: dict[str, Any]) -> list[dict[str, Any]]:
        toc = toc_of(Blob(self.blob(layer["digest"]), layer["annotations"], []))
        assert not [entry for entry in toc["entries"] if entry["type"] == "chunk"]
        return [entry for entry in toc["entries"] if entry["type"] == "reg" and entry.get("size")]

    def paths(self, digest: str) -> set[str]:
        """The files of a layer."""
        blob = self.blob(digest)
        raw = (
            gzip.decompress(blob)
            if blob[:2] == b"\x1f\x8b"
            else zstandard.ZstdDecompressor().stream_reader(blob).read()
        )
        with tarfile.open(fileobj=BytesIO(raw)) as archive:
            return {member.name for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def before(catalog: Path, report: Report) -> Counted:
    return Counted(catalog.parent / "store")


@pytest.fixture(scope="module")
def after(catalog: Path, report: Report) -> Counted:
    return Counted(catalog.parent / "store", "new/")


@pytest.mark.large
def test_totals_are_those_that_the_blobs_of_the_layout_give(report: Report, before: Counted, after: Counted) -> None:
    for found, counted in ((report.before, before), (report.after, after)):
        assert found is not None
        names = list(counted.manifests)
        assert found.stored == counted.size(counted.blobs(*names))
        assert found.layers == len({layer for name in names for layer in counted.layers(name)})
        assert found.pulled == sum(counted.pull(old, new) for old, new in counted.pulls())
        assert (found.images, found.pulls) == (len(names), len(list(counted.pulls())))
    assert report.before.pulled_in_part is None
    assert report.after is not None
    assert report.after.pulled_in_part == sum(after.pull_in_part(old, new) for old, new in after.pulls())
    assert report.after.pulled_in_part < report.after.pulled < report.before.pulled


def test_every_image_has_the_digests_bytes_and_pulls_that_the_layout_gives(
    report: Report, before: Counted, after: Counted
) -> None:
    precede = {new: old for old, new in before.pulls()}
    assert [row.name for row in report.images] == list(before.manifests)
    for row in report.images:
        assert (row.old, row.new) == (before.digests[row.name], after.digests[row.name])
        assert row.bytes_before == before.size(before.blobs(row.name))
        assert row.bytes_after == after.size(after.blobs(row.name))
        assert row.layers_before == len(before.layers(row.name))
        assert row.layers_after == len(after.layers(row.name))
        old = precede.get(row.name)
        assert row.pull_before == (None if old is None else before.pull(old, row.name))
        assert row.pull_after == (None if old is None else after.pull(old, row.name))
        assert row.pull_in_part_after == (None if old is None else after.pull_in_part(old, row.name))


def test_every_layer_has_its_bytes_its_images_and_the_components_of_its_files(report: Report, after: Counted) -> None:
    holders: defaultdict[str, set[str]] = defaultdict(set)
    for name in after.manifests:
        for layer in after.layers(name):
            holders[layer].add(name)
    assert report.layers_of == "after"
    assert {row.digest: row.images for row in report.layers} == {each: len(found) for each, found in holders.items()}
    assert [row.bytes for row in report.layers] == sorted((len(after.blob(each)) for each in holders), reverse=True)
    for row in report.layers:
        directories = {path.rpartition("/")[0] for path in after.paths(row.digest)}
        assert {each.name.removeprefix("tree:") for each in row.components} == directories
        assert sum(each.bytes for each in row.components) == pytest.approx(row.bytes, rel=0.1, abs=2000)


def test_layers_of_a_plan_have_components_and_images_too(prediction: Report, report: Report) -> None:
    assert prediction.layers_of == "planned"
    key = sorted((row.name, row.images, row.components) for row in report.layers if row.components)
    assert sorted((row.name, row.images, row.components) for row in prediction.layers if row.components) == key


def test_layers_of_images_that_stay_have_the_components_of_their_files(tmp_path: Path) -> None:
    images(tmp_path)
    work = work_on(catalog_file(tmp_path, POLICY))
    found = work.fetch()
    work.plan(found)
    work.transform(found[:1])
    work.finish()
    result = report_of(work, found)
    counted = Counted(tmp_path / "images")
    last = f"{REPOSITORIES[-1]}:{TAGS}.0"
    rows = {row.digest: row for row in result.layers}
    for layer in counted.layers(last):
        directories = {path.rpartition("/")[0] for path in counted.paths(layer)}
        assert {each.name.removeprefix("tree:") for each in rows[layer].components} == directories
    assert result.run is not None
    assert result.run.outcomes == {"made": 1, "pending": len(found) - 1}


def test_a_large_file_that_is_in_several_layers_is_worth_a_rule(report: Report, after: Counted, tmp_path: Path) -> None:
    (row,) = report.duplicate_files
    holders = {each for name in after.manifests for each in after.layers(name) if "usr/app/model" in after.paths(each)}
    assert (row.paths, row.components, row.bytes, row.remedy) == (
        ("usr/app/model",),
        ("tree:usr/app",),
        600_000,
        "rule",
    )
    assert row.layers == len(holders) == TAGS * len(REPOSITORIES)

    images(tmp_path)
    policy = POLICY.replace("}", ", components: [{name: model, paths: [usr/app/model]}]}")
    assert planned(catalog_file(tmp_path, policy)).duplicate_files == ()


def test_components_in_several_layers_are_counted_before_and_by_the_plan(
    report: Report, before: Counted, after: Counted
) -> None:
    rows = {(row.what, row.bytes): row for row in report.duplicates}
    path = "opt/5/data"
    old = {each for name in before.manifests for each in before.layers(name) if path in before.paths(each)}
    row = rows["tree:opt/5", 30_000]
    assert row.before == len(old) == TAGS
    assert (
        row.after == len({each for n in after.manifests for each in after.layers(n) if path in after.paths(each)}) == 1
    )


# --- what the run did -----------------------------------------------------------------------------


def test_the_report_says_what_the_last_run_did(tmp_path: Path) -> None:
    images(tmp_path)
    path = catalog_file(tmp_path, "{transform: squash}")
    first, second = ran(path), ran(path)
    assert first.run is not None and second.run is not None
    count = TAGS * len(REPOSITORIES)
    assert (first.run.kind, first.run.fetched, first.run.outcomes) == ("run", count, {"made": count})
    assert (second.run.fetched, second.run.outcomes) == (0, {"unchanged": count})
    assert f"run of {second.run.began}: {count} unchanged" in report_lines(second)


def test_a_failure_has_its_reason_and_what_to_do(tmp_path: Path) -> None:
    images(tmp_path)
    result = ran(catalog_file(tmp_path, "{transform: squash, keep: 9}"))
    assert result.run is not None
    assert result.run.outcomes == {"failed": len(result.images)}
    (found,) = {each.todo.replace(each.where, "NAME") for each in result.failures}
    assert found == "Correct the image or its policy, then run again. The policy keep publishes NAME unchanged."
    failed = next(each for each in tables(check(page(result))) if "failed" in each.caption)
    assert {name: row["Reason"] for name, row in failed.rows.items()} == {row.name: row.error for row in result.images}


@pytest.mark.parametrize(
    ("changes", "made", "outcome"),
    [
        ({"acts": ("fetched", "made", "pushed")}, True, "made"),
        ({"acts": ("fetched", "copied", "pushed")}, True, "kept"),
        ({"acts": ("repaired",)}, True, "repaired"),
        ({"acts": ("pushed",)}, True, "published"),
        ({"acts": ("fetched",)}, False, "pending"),
        ({"acts": ("made",), "run": "an earlier one"}, True, "unchanged"),
        ({"acts": ("made",), "error": "push failed"}, True, "failed"),
        ({"note": "a chart"}, False, "skipped"),
    ],
)
def test_outcome_of_an_image(changes: dict[str, Any], made: bool, outcome: str) -> None:
    state = ImageState(name="a:1").but(**{"run": "now", **changes})
    assert outcome_of(state, LastRun(began="now"), made=made) == outcome


def test_an_image_that_a_plan_does_not_find_made_is_planned() -> None:
    assert outcome_of(ImageState(name="a:1"), LastRun(kind="plan", began="now"), made=False) == "planned"


# --- JSON -----------------------------------------------------------------------------------------


def test_reports_are_what_the_schema_says(report: Report, prediction: Report) -> None:
    schema = json.loads(dict(schemas())["catalog.output.json"])
    for each in (report, prediction, Report(catalog="empty", before=totals({}, {}), images=())):
        document = json.loads(each.model_dump_json())
        validate(document, schema)


# --- the page -------------------------------------------------------------------------------------


def test_sizes_are_told_in_powers_of_thousand() -> None:
    assert [size_text(n) for n in (None, 0, 999, 1000, 1_500_000, 2_000_000_000)] == [
        "-",
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.0 GB",
    ]


def test_pages_are_well_formed_accessible_and_self_contained(report: Report, prediction: Report) -> None:
    for each in (report, prediction, many(2, 1), Report(catalog="empty", before=totals({}, {}), images=())):
        check(page(each))


def test_the_page_has_the_numbers_of_the_report(report: Report) -> None:
    found = check(page(report))
    by_caption = {table.caption: table for table in tables(found)}
    for repository in REPOSITORIES:
        rows = by_caption[f"Tags of {repository}, oldest first"].rows
        for image_row in (row for row in report.images if row.name.startswith(repository)):
            assert rows[image_row.name.rpartition(":")[2]] == {
                "Tag": image_row.name.rpartition(":")[2],
                "Outcome": "made",
                "Layers": f"{image_row.layers_before} → {image_row.layers_after}",
                "Bytes": f"{size_text(image_row.bytes_before)} → {size_text(image_row.bytes_after)}",
                "Pull before": size_text(image_row.pull_before),
                "Predicted": size_text(image_row.pull_planned),
                "Now": size_text(image_row.pull_after),
                "In part now": size_text(image_row.pull_in_part_after),
            }
    stacks = by_caption["Layers, most bytes first, with the number of images that share each"]
    for cells, layer in zip(stacks.elements, report.layers, strict=False):
        assert [cell.text for cell in cells[1:3]] == [str(layer.images), size_text(layer.bytes)]
        shown = [part.text for part in cells[3].all("li")]
        assert shown[:5] == [f"{part.name} {size_text(part.bytes)}" for part in layer.components[:5]]
    text = found.text
    for row in report.images:
        for shown_digest in (row.old, row.new, row.proof, row.verify, row.place):
            assert shown_digest is not None and shown_digest in text
    assert report.run is not None and report.run.ended is not None
    assert report.run.ended in text and report.created in text


def test_bars_of_a_layer_are_as_long_as_its_components(report: Report) -> None:
    found = check(page(report))
    table = next(table for table in tables(found) if table.caption.startswith("Layers, most bytes first"))
    most = report.layers[0].bytes
    for cells, layer in zip(table.elements, report.layers, strict=False):
        widths = [float(part.attributes["width"]) for part in cells[3].all("rect")]
        assert sum(widths) == pytest.approx(1000 * layer.bytes / most, abs=0.5)
        estimated = sum(part.bytes for part in layer.components)
        for width, part in zip(widths[:5], layer.components, strict=False):
            assert width == pytest.approx(sum(widths) * part.bytes / estimated, abs=0.1)


def test_points_of_a_plot_are_at_the_bytes_of_the_pulls(report: Report) -> None:
    rows = [row for row in report.images if row.name.startswith(REPOSITORIES[0])]
    plot = plot_of(rows)
    assert plot is not None
    zero, _, top = plot.sizes
    pulls = {"before": "pull_before", "after": "pull_after", "part-after": "pull_in_part_after"}
    assert [line.kind for line in plot.lines] == list(pulls)
    scale = {"kB": 1000, "MB": 10**6}
    number, unit = top.text.split()
    for line in plot.lines:
        values = [getattr(row, pulls[line.kind]) for row in rows[1:]]
        sizes = [(zero.at - y) / (zero.at - top.at) * float(number) * scale[unit] for _, y in line.points]
        assert sizes == pytest.approx(values, rel=0.02, abs=2000)


def test_the_page_escapes_what_registries_say_and_needs_nothing_from_outside() -> None:
    bad = '"><img src=http://a>'
    row = ImageRow(
        name="<script>x</script>:1",
        state="failed",
        outcome="failed",
        error=bad,
        todo=bad,
        policy=bad,
        old=bad,
        place=bad,
        verify=bad,
        layers_before=1,
        bytes_before=1,
        warnings=(bad,),
    )
    text = page(Report(catalog="<b>", file=bad, before=totals({}, {}), images=(row,)))
    found = check(text)
    assert "<img" not in text
    assert "<b>" in found.all("h1")[0].text
    assert [each.text for each in found.all("h3")].count("<script>x</script>") == 1


def many(repositories: int, tags: int) -> Report:
    """A report on many images that share layers."""
    rows = [
        ImageRow(
            name=f"team/{repository}:1.{tag}",
            state="failed" if tag == 1 else "done",
            outcome="failed" if tag == 1 else "unchanged",
            error="registry does not answer" if tag == 1 else None,
            layers_before=8,
            layers_after=60,
            bytes_before=10**8,
            bytes_after=10**8,
            pull_before=10**6 if tag else None,
            pull_after=10**5 if tag else None,
            warnings=("a referrer was left behind",),
        )
        for repository in range(repositories)
        for tag in range(tags)
    ]
    return Report(
        catalog="many", file="/srv/many.yaml", before=totals({}, {}), after=totals({}, {}), images=tuple(rows)
    )


@pytest.mark.large
def test_a_page_of_ten_thousand_images_is_small_and_says_what_it_left_out() -> None:
    result = many(400, 25)
    text = page(result)
    assert len(text) < 1_500_000
    found = check(text)
    assert len(found.all("h3")) < MOST["repositories"] + 10
    notes = [each.text for each in found.all("p") if "are listed." in each.text]
    rest = "are listed. All of them: layerfarm catalog report /srv/many.yaml --json"
    assert f"30 of 400 repositories {rest}" in notes
    assert f"20 of 25 tags {rest}" in notes
    assert f"100 of 400 failures {rest}" in notes
    assert f"100 of 10,000 warnings {rest}" in notes
    assert len(json.loads(result.model_dump_json())["images"]) == 10_000


def test_the_checks_of_pages_find_faults(report: Report) -> None:
    text = page(report)
    for good, bad in (
        ("</h2>", ""),
        ('id="tags"', 'id="run"'),
        ('<h2 id="totals">Totals</h2>', '<h4 id="totals">Totals</h4>'),
        ("<caption>", "<p>"),
        ('scope="row"', ""),
        ("<main", "<main style='color:red'"),
        ("default-src 'none'", "default-src *"),
        ("--ink: #1b2430", "--ink: #1b2431"),
        ('data-label="Bytes"', 'data-label="Octets"'),
        ('aria-hidden="true"', ""),
    ):
        assert good in text
        with pytest.raises((AssertionError, KeyError, ValueError)):
            check(text.replace(good, bad, 1))


def test_tables_are_read_by_their_columns(report: Report) -> None:
    outcomes: Table = tables(check(page(report)))[0]
    assert outcomes.rows["made"]["Images"] == str(len(report.images))
