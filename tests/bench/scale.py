"""``make bench-scale``: catalogs of many images, planned and reported in memory, and run for real with tiny images.

Plans and reports are of images that are made up (:mod:`tests.bench.synthetic`), 300 components each. Runs are of real
images of two small layers, from a layout, squashed on this machine: what is measured is all that a catalog does around
the transform. Each measurement is a process of its own, on one processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from math import log
from pathlib import Path

import click

from layerfarm.jobs.relayer.analysis import Analysis, Metadata
from layerfarm.jobs.relayer.planner.plan import Part, Snapshot
from layerfarm.worker.catalog.costs import Pullable, pulls, shared, totals
from layerfarm.worker.catalog.duplicates import duplicate_components, duplicate_files
from layerfarm.worker.catalog.members import ConfigSize, Member
from layerfarm.worker.catalog.policies import Rechunk
from layerfarm.worker.catalog.savings import plan_what_saves
from layerfarm.worker.catalog.series import in_order
from layerfarm.worker.catalog.stacks import layer_rows
from tests.bench.synthetic import snapshots
from tests.unit.catalog.works import catalog_file
from tests.unit.image.images import image, tar

_LAYERS = 8
"""Layers of a made-up image before: its components by the order of their keys, as install steps would make them."""
Row = dict[str, float]


def plan_and_report(count: int, components: int = 300) -> Row:
    """Plan ``count`` images, and compute all that a report says of them. Returns seconds of processor time."""
    began = time.process_time()
    members = list(_members(snapshots(count, components)))
    read = time.process_time()
    created = dict.fromkeys((member.name for member in members), None)
    joint, losses = plan_what_saves(members, created, "created", None, ())
    planned = time.process_time()
    row: Row = {
        "images": count,
        "read": read - began,
        "plan": planned - read,
        "left": sum(loss.images for loss in losses),
    }
    if joint is not None:
        joint.layouts()
        before, after = joint.originals(), joint.holdings()
        series = list(in_order(before, created, "created").values())
        duplicate_components(joint)
        duplicate_files(joint)
        layer_rows(after, joint, {member.name for member in joint.members})
        old, new = (totals(held, pulls(held, series)) for held in (before, after))
        shared(before)
        shared(after)
        row |= {
            "report": time.process_time() - planned,
            "stored": new.stored / old.stored,
            "pulled": new.pulled / old.pulled,
        }
    return row


def _members(images: Iterator[Snapshot]) -> Iterator[Member]:
    parts: dict[Part, Part] = {}
    strings: dict[str, str] = {}
    policy = Rechunk(transform="rechunk")
    for snapshot in images:
        name = f"{snapshot.line}:{snapshot.tag}"
        own = tuple(parts.setdefault(part, part) for part in snapshot.parts)
        step = -(-len(own) // _LAYERS)
        blobs: dict[str, int] = {}
        for at in range(0, len(own), step):
            some = own[at : at + step]
            digest = hashlib.sha256("\n".join(part.digest for part in some).encode()).hexdigest()
            blobs[strings.setdefault(digest, digest)] = sum(part.packed for part in some)
        original = Pullable(tuple(blobs), {**blobs, f"config {name}": 4000})
        analysis = Analysis(image=name, keep=0, parts=own, directories=Metadata(f"directories {name}", 20_000))
        yield Member(name, "linux/amd64", original, ConfigSize(2000, 250, 251, True), analysis, policy)


def run_tiny(count: int) -> Row:
    """Run a catalog of ``count`` tiny images, and again with nothing to do. Returns seconds of processor time."""
    from layerfarm.jobs.store import Layout
    from layerfarm.jobs.store.tag_group import TagGroup
    from layerfarm.worker.cli.main import main as layerfarm

    with tempfile.TemporaryDirectory(prefix="layerfarm-scale-") as place:
        directory = Path(place)
        layout = Layout.create(directory / "images")
        group = TagGroup(layout.path)
        for number in range(count):
            layers = [tar(("base", b"base")), tar((f"opt/{number}", b"%d" % number))]
            with group.piece():
                image(layout, layers, tag=f"team/{number // 10}:1.{number % 10}")
        assert not any(group.write())
        command = ["catalog", "run", str(catalog_file(directory, "{transform: squash}")), "--progress", "none"]
        times = [time.process_time()]
        for outcome in ("made", "unchanged"):
            with redirect_stdout(StringIO()) as out:
                assert layerfarm(command) == 0
            assert f"{count:,} {outcome}" in out.getvalue(), out.getvalue()
            times.append(time.process_time())
        run, nothing = (end - begin for begin, end in pairwise(times))
        return {"images": count, "run": run, "per image": run / count, "nothing": nothing}


_MEASURES: dict[str, Callable[[int], Row]] = {"plan": plan_and_report, "run": run_tiny}


def _measured(what: str, count: int) -> Row:
    command = [sys.executable, "-m", "tests.bench.scale", "--one", what, str(count)]
    found: Row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def _table(title: str, rows: Sequence[Row], cost: str) -> None:
    print(f"\n{title}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        columns,
        *(
            [f"{row.get(name, 0):,.3g}" if name != "images" else f"{row[name]:,.0f}" for name in columns]
            for row in rows
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for one, other in pairwise(rows):
        power = log(other[cost] / one[cost]) / log(other["images"] / one["images"])
        print(f"{one['images']:,.0f} to {other['images']:,.0f} images: {cost} grows as n^{power:.2f}")


@click.command()
@click.option("--plan", "plans", default="300,1000,3000,10000", show_default=True, help="Numbers of made-up images.")
@click.option("--run", "runs", default="100,300,1000", show_default=True, help="Numbers of tiny images.")
@click.option("--one", type=(click.Choice(sorted(_MEASURES)), int), hidden=True)
def main(plans: str, runs: str, one: tuple[str, int] | None) -> None:
    """Measure how a catalog's work grows with its images; seconds of processor time and MB."""
    if one is not None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        row = _MEASURES[one[0]](one[1])
        row["MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(row))
        return
    for what, title, counts in (
        ("plan", "Plan and report of made-up images with 300 components", plans),
        ("run", "Run of tiny images", runs),
    ):
        rows = [_measured(what, int(count)) for count in counts.split(",") if count]
        _table(title, rows, what)


if __name__ == "__main__":
    main()
