"""``make man``: pictures of ``layerfarm top`` and of a catalog's report, from the recorded states below."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType
from rich.text import Text

from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.priorities import Queues
from layerfarm.worker.catalog.costs import SharedRow, Totals
from layerfarm.worker.catalog.page import page
from layerfarm.worker.catalog.report import ImageRow, Report, RunRow
from layerfarm.worker.cli.catalog_text import report_lines
from layerfarm.worker.cli.top_cmd import view
from layerfarm.worker.model import JobRecord, JobState
from layerfarm.worker.monitoring.census import Census

_NOW: Final = 1_700_000_000.0


def top() -> str:
    """Draw ``layerfarm top``."""
    return drawn("layerfarm top", view(Address("redis://queue/0"), _census(), _jobs(), 20, _NOW), 110)


def report() -> str:
    """Draw the text of a report."""
    return drawn("layerfarm catalog report web.yaml", Text("\n".join(report_lines(_report()))), 84)


def report_page() -> str:
    """Return the page of a report."""
    return page(_report())


def drawn(title: str, content: RenderableType, width: int) -> str:
    """Draw a terminal of ``width`` columns."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(content)
    picture = console.export_svg(title=title, unique_id="terminal")
    # rich names a font on a public host; a reader's own does as well.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).rstrip() + "\n"


def _census() -> Census:
    workers = [
        WorkerInfo(
            name=f"build-{number}-417-9c2e",
            host=f"build-{number}",
            pid=417,
            concurrency=8,
            roots=(Path("/srv/rootfs"),),
            stores=(Path("/srv/oci"),),
            kinds=("build",),
        )
        for number in (1, 2)
    ]
    return Census(
        jobs=Counter({("build", "running", "interactive"): 1, ("rechunk", "queued", "bulk"): 12}),
        queues=dict(zip((*Queues.of("layerfarm"), "unacked"), (0, 3, 0, 11, 12, 16), strict=True)),
        oldest={"bulk": 41.0},
        workers=workers,
        kept=1,
        redis_bytes=3_400_000,
    )


def _jobs() -> list[JobRecord]:
    def job(number: int, kind: str, state: JobState, **fields: object) -> JobRecord:
        values = {"id": f"{number * 0x4D3A19F2C57B:012x}"[:12], "kind": kind, "state": state, "request": {}}
        return JobRecord.model_validate(values | fields)

    hashing = {"stage": "hash", "stage_number": 3, "stages": 6, "units_done": 5, "units_total": 16}
    packing = {"stage": "pack", "stage_number": 3, "stages": 5, "units_done": 9, "units_total": 31}
    return [
        job(
            3, "build", JobState.RUNNING, submitted=_NOW - 4, submitter="ci@runner-7", bytes_done=812_000_000
        ).model_copy(update={**hashing, "bytes_total": 2_870_000_000}),
        job(2, "rechunk", JobState.RUNNING, submitted=_NOW - 63, submitter="nightly", traffic="bulk", **packing),
        job(1, "rechunk", JobState.QUEUED, submitted=_NOW - 41, submitter="nightly", traffic="bulk"),
        job(5, "unpack", JobState.SUCCEEDED, submitted=_NOW - 95, ended=_NOW - 88, submitter="ann@laptop"),
        job(4, "repack", JobState.FAILED, submitted=_NOW - 130, ended=_NOW - 121, submitter="ci@runner-3"),
    ]


def _report() -> Report:
    before, after = (
        [(f"web/{name}:1.{tag}", size) for name in ("api", "shop") for tag, size in enumerate(sizes)]
        for sizes in ((412, 405, 409, 411), (398, 61, 34, 58))
    )
    images = [
        ImageRow(
            name=name,
            state="done",
            outcome="made",
            policy="rechunk",
            layers_before=7,
            layers_planned=31,
            layers_after=31,
            bytes_before=412_000_000,
            bytes_after=398_000_000,
            pull_before=None if name.endswith(".0") else pull * 1_000_000,
            pull_planned=None if name.endswith(".0") else new * 1_000_000,
            pull_after=None if name.endswith(".0") else new * 1_000_000,
        )
        for (name, pull), (_, new) in zip(before, after, strict=True)
    ]
    return Report(
        catalog="web",
        file="/srv/catalog/web.yaml",
        created="2026-03-09T06:12:31.000Z",
        store="/srv/catalog/work",
        destination="docker://registry.example/relayered",
        order="created",
        proofs="referrer",
        run=RunRow(
            kind="run",
            began="2026-03-09T06:02:11.000Z",
            ended="2026-03-09T06:12:30.000Z",
            fetched=8,
            outcomes={"made": 8},
        ),
        before=Totals(images=8, layers=34, stored=2_190_000_000, pulled=2_450_000_000, pulls=6),
        planned=Totals(images=8, layers=96, stored=702_000_000, pulled=306_000_000, pulls=6),
        after=Totals(images=8, layers=96, stored=702_000_000, pulled=306_000_000, pulls=6),
        images=tuple(images),
        shared_after=(
            SharedRow(images=tuple(image.name for image in images), layers=14, bytes=297_000_000),
            SharedRow(images=tuple(image.name for image in images[:4]), layers=9, bytes=61_000_000),
        ),
        requests={"HEAD": 16, "GET": 24},
    )
