"""``make bench-catalog``: a catalog of 40 images and more, laid out in every way, on tags held out from planning.

The images come from a registry on loopback and are transformed on a farm of this machine. Ours is planned from the
first tags of each repository; then the later ones come. Every image that is made is proved by the run itself, and
again by ``umoci unpack`` of the old and of the new one and a comparison of the two trees that shares no code with
layerfarm.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from layerfarm.jobs.relayer.analysis import AnalysisOptions, kept_analysis
from layerfarm.jobs.relayer.indexes import read_images
from layerfarm.jobs.relayer.planner.plan import Snapshot
from layerfarm.jobs.store import Layout
from layerfarm.worker.embedded import EmbeddedFarm
from tests.bench import planners
from tests.bench.catalog_kills import killed_and_equal
from tests.catalog.archive import Archive
from tests.catalog.images import CACHE, catalog, images_of
from tests.catalog.registry import Registry
from tests.catalog.spec import FULL, SMALL, Spec
from tests.trees import read_tree

BUDGET = 64
OURS = f"transform: rechunk, budget: {BUDGET}"
OTHERS = {
    "recompress to zstd": "transform: recompress, compress: zstd",
    "recompress to zstd:chunked": "transform: recompress, compress: 'zstd:chunked'",
    "squash": "transform: squash",
}
"""Other transforms, by the name of their row."""
CODECS = {f"rechunk to {codec}": f"{OURS}, compress: '{codec}'" for codec in ("zstd", "zstd:chunked", "estargz")}
"""Our layout in compressions other than gzip, that of the images."""


def repositories_of(spec: Spec) -> list[str]:
    return sorted({image.rpartition(":")[0] for image in images_of(spec)})


@dataclass(frozen=True)
class Row:
    """One way to lay out the catalog. Bytes are compressed; pulls are those of held-out tags."""

    name: str
    stored: int
    pulled: int
    estimated: bool
    in_part: int | None = None
    """Pulled by a client that pulls layers in part; None: no layer has a table of contents."""


@dataclass(frozen=True)
class Ground:
    """Its place."""

    spec: Spec
    place: Path
    host: str
    farm: str
    planned_days: int

    def tags(self, days: int) -> list[str]:
        return [f"{day + 1}.0" for day in range(days)]

    def held_out(self, name: str) -> bool:
        """True: the pull of a tag that no plan was made from."""
        return int(name.rpartition(":")[2].partition(".")[0]) > self.planned_days

    def run(self, name: str, policy: str, days: int) -> tuple[dict[str, Any], float]:
        """``layerfarm catalog run``; the report, and seconds."""
        path = self.place / f"{name}.yaml"
        path.write_text(
            f"store: {name}\nsources: [{{registry: 'docker://{self.host}',\n"
            f"  repositories: {json.dumps(repositories_of(self.spec))},\n"
            f"  tags: {json.dumps(self.tags(days))}}}]\n"
            f"policies: [{{match: '*', do: {{{policy}}}}}]\naccess: {{tls-verify: false}}\n"
        )
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "layerfarm.worker.cli", "catalog", "run", path, "--json", "--farm", self.farm],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
        seconds = time.monotonic() - begin
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0, [row for row in report["images"] if row["error"]]
        return report, seconds

    def run_held_out(self, name: str, policy: str) -> tuple[dict[str, Any], float]:
        """Plan from the first tags, then run the held-out ones; the report, and seconds of the second run."""
        _say(f"{name}: the first {self.planned_days} tags of each repository")
        self.run(name, policy, self.planned_days)
        _say(f"{name}: the held-out tags")
        return self.run(name, policy, self.spec.days)

    def row(self, name: str, report: Mapping[str, Any], field: str) -> Row:
        pulled, in_part = (self._pulled(report, f"{how}_{field}") for how in ("pull", "pull_in_part"))
        return Row(name, report[field]["stored"], pulled, field == "planned", in_part or None)

    def _pulled(self, report: Mapping[str, Any], field: str) -> int:
        return sum(row.get(field) or 0 for row in report["images"] if self.held_out(row["name"]))


def measure(ground: Ground, *, everything: bool) -> list[Row]:
    """All rows of the table."""
    report, seconds = ground.run_held_out("ours", OURS)
    _, again = ground.run("ours", OURS, ground.spec.days)
    _say(f"ours: held-out tags in {seconds:.0f} s, a run with nothing to do in {again:.1f} s")
    rows = [ground.row("original layers", report, "before")]
    rows += _made(ground, OTHERS if everything else {})
    rows += _others(ground, {row.name for row in rows})
    rows.append(ground.row("rechunk, predicted", report, "planned"))
    rows.append(ground.row("rechunk", report, "after"))
    rows += _made(ground, CODECS if everything else {})
    return rows


def _made(ground: Ground, ways: Mapping[str, str]) -> list[Row]:
    """Rows of the images made in other ways: policies by name."""
    rows = []
    for name, policy in ways.items():
        store = re.sub("[^a-z]+", "-", name)
        report, _ = ground.run_held_out(store, policy)
        rows.append(ground.row(name, report, "after"))
        shutil.rmtree(ground.place / store)
    return rows


def _others(ground: Ground, measured: set[str]) -> list[Row]:
    """The plans of others, by the same estimates as our prediction."""
    layout = Layout.open(ground.place / "ours")
    snapshots = _snapshots(ground, layout)
    stability = _stability(ground, snapshots)
    ways: dict[str, planners.Planner] = {
        "squash": planners.squashed,
        "chunkah-style": planners.chunkah(stability),
        "nix-auto-style": planners.nix_auto(_dependencies(ground.spec)),
    }
    rows = []
    for name, plan in ways.items():
        if name in measured:
            continue
        stored: dict[str, int] = {}
        pulled = 0
        before: dict[str, dict[str, int]] = {}
        for image in snapshots:
            sizes = {chunk.digest: chunk.packed for chunk in plan(image)}
            stored |= sizes
            if image.line in before and ground.held_out(f"{image.line}:{image.tag}"):
                pulled += sum(size for digest, size in sizes.items() if digest not in before[image.line])
            before[image.line] = sizes
        rows.append(Row(name, sum(stored.values()), pulled, True))
    return rows


def _snapshots(ground: Ground, layout: Layout) -> list[Snapshot]:
    found = []
    for name in images_of(ground.spec):
        repository, _, tag = name.rpartition(":")
        (image,) = read_images(layout, name).images
        analysis = kept_analysis(layout, image.descriptor.digest, AnalysisOptions())
        assert analysis is not None, name
        found.append(analysis.snapshot(repository, int(tag.partition(".")[0]), tag, BUDGET))
    return found


def _stability(ground: Ground, snapshots: Sequence[Snapshot]) -> dict[str, float]:
    """By component, in how many of the steps between the planned tags it stayed as it was."""
    last: dict[tuple[str, str], str] = {}
    steps: defaultdict[str, list[bool]] = defaultdict(list)
    for image in snapshots:
        if ground.held_out(f"{image.line}:{image.tag}"):
            continue
        for part in image.parts:
            if (image.line, part.key) in last:
                steps[part.key].append(last[image.line, part.key] == part.digest)
            last[image.line, part.key] = part.digest
    return {key: sum(same) / len(same) for key, same in steps.items()}


def _dependencies(spec: Spec) -> dict[str, list[str]]:
    """Dependencies of Debian's packages, by component key."""
    found: dict[str, list[str]] = {}
    for suite in spec.suites:
        for name, depends in Archive(CACHE / spec.name / suite, suite, spec.days).dependencies().items():
            found.setdefault(f"dpkg:{name}", []).extend(f"dpkg:{other}" for other in depends)
    return found


# --- proof by others -----------------------------------------------------------------------------


def unpacked_alike(place: Path, spec: Spec) -> None:
    """See that ``umoci unpack`` makes the same tree of each image, old and new.

    Raises:
        AssertionError: it does not.
    """
    names = images_of(spec)
    for number, name in enumerate(names, 1):
        entries = compare_unpacked(place, name)
        _say(f"umoci unpacks the same {entries} entries of {name} ({number}/{len(names)})")
    _say(f"all {len(names)} images are the same to umoci")


def compare_unpacked(place: Path, name: str) -> int:
    """Unpack an image of ``ours`` as it was and as it is with umoci, and compare; returns the entries."""
    trees = []
    for tag in (name, f"new/{name}"):
        bundle = place / "bundle"
        subprocess.run(["umoci", "unpack", "--image", f"{place}/ours:{tag}", bundle], check=True, capture_output=True)
        trees.append(read_tree(bundle / "rootfs"))
        shutil.rmtree(bundle)
    assert trees[0] == trees[1], f"{name}: {_first_difference(*trees)}"
    return len(trees[0])


def _first_difference(old: Mapping[bytes, Any], new: Mapping[bytes, Any]) -> object:
    path = min(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return path, old.get(path), new.get(path)


# --- the table -----------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        "| layout | stored | | pulled, held-out tags | | pulled in part | | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [
            row.name,
            *_cells(row.stored, first.stored),
            *_cells(row.pulled, first.pulled),
            *_cells(row.in_part, first.pulled),
            "estimated" if row.estimated else "measured",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(size: int | None, whole: int) -> tuple[str, str]:
    return ("-", "-") if size is None else (f"{size / 1e6:,.1f} MB", f"{100 * size / whole:.1f} %")


@click.command()
@click.option("--small", is_flag=True, help="The images of `make test`, to see that it works.")
@click.option("--everything/--ours", default=True, help="Transform the images in the other ways and compressions, too.")
@click.option("--umoci/--no-umoci", default=True, help="Unpack every image twice with umoci, and compare.")
@click.option("--kills", is_flag=True, help="No table: kill workers and registry at random; it ends equal.")
@click.option("--seed", type=int, help="Of the kills; else one is taken and printed.")
@click.option("--keep", type=click.Path(path_type=Path), help="A directory to work in and leave behind.")
def main(small: bool, everything: bool, umoci: bool, kills: bool, seed: int | None, keep: Path | None) -> None:
    spec = SMALL if small else FULL
    images = catalog(spec)
    program = shutil.which("docker-registry")
    assert program is not None, "docker-registry is not installed: make packages"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=CACHE) as temporary:
        place = (keep or Path(temporary)).absolute()
        place.mkdir(exist_ok=True)
        with Registry(place / "registry", program) as registry:
            for name in images_of(spec):
                registry.put(images, name, name)
            _say(f"{len(images_of(spec))} images in the registry, {registry.blob_bytes() / 1e6:,.0f} MB")
            if kills:
                seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
                seen = killed_and_equal(place, registry, OURS, repositories_of(spec), seed, _say)
                if umoci:
                    unpacked_alike(place / "allowed", spec)
                click.echo(f"{seen}; SEED={seed}")
                return
            with EmbeddedFarm(roots=[place], stores=[place], concurrency=os.cpu_count() or 2) as farm:
                ground = Ground(spec, place, registry.host, farm.url, max(1, spec.days - 2))
                rows = measure(ground, everything=everything)
            if umoci:
                unpacked_alike(place, spec)
        page = place / "report.html"
        subprocess.run(
            [sys.executable, "-m", "layerfarm.worker.cli", "catalog", "report", place / "ours.yaml", "--html", page],
            check=True,
        )
    click.echo(table(rows))


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


if __name__ == "__main__":
    main()
