"""``python -m tests.bench.page A.json B.json …``: the tables of docs/measurements.md, of runs of ``make bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tests.bench import report
from tests.bench.measure import Run, Series
from tests.bench.operations import Comparison


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(results: tuple[Path, ...]) -> None:
    """Print a Markdown table for each tree: the middle of all runs, and the ratio that each run of the suite gave."""
    suites = [_read(path) for path in results]
    for where in dict.fromkeys(key[:2] for suite in suites for key in suite):
        click.echo(f"\n### {' on '.join(where)}\n")
        click.echo(_table([suite for suite in suites if any(key[:2] == where for key in suite)], where))


Suite = dict[tuple[str, str, str], Comparison]


def _read(path: Path) -> Suite:
    comparisons = [_comparison(found) for found in json.loads(path.read_text())["comparisons"]]
    return {(comparison.tree, comparison.on, comparison.operation): comparison for comparison in comparisons}


def _comparison(found: dict[str, Any]) -> Comparison:
    series = {
        name: Series([Run(**run) for run in value["runs"]], value["size"]) for name, value in found["series"].items()
    }
    return Comparison(**found | {"series": series})


def _table(suites: list[Suite], where: tuple[str, str]) -> str:
    lines = [
        "| operation | subject | wall, s | CPU, s | RSS, MB | ratio of wall | target | of limit"
        " | size, MB | ratio | target |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key in dict.fromkeys(key for suite in suites for key in suite if key[:2] == where):
        found = [suite[key] for suite in suites if key in suite]
        for number, name in enumerate(found[0].series):
            lines.append(_row(found, number, name))
    return "\n".join(lines)


def _row(found: list[Comparison], number: int, name: str) -> str:
    series = Series([run for one in found for run in one.series[name].runs], found[-1].series[name].size)
    first = next(iter(found[-1].series.values()))
    ratios = [one.series[name].wall() / next(iter(one.series.values())).wall() for one in found]
    limits = [one.series[name].wall() / one.series[one.limit].wall() for one in found if one.limit]
    target, _ = report.target_of(found[-1], name, series, ratios[-1])
    size_target = found[-1].size_targets.get(name)
    cells = (
        found[0].operation if number == 0 else "",
        name,
        f"{series.wall():.2f}",
        f"{series.user() + series.system():.2f}",
        f"{series.peak_rss() / 1e6:.0f}",
        ", ".join(f"{ratio:.2f}" for ratio in ratios) if number else "1",
        f"≤ {target}" if target else "",
        ", ".join(f"{ratio:.2f}" for ratio in limits),
        "" if series.size is None else f"{series.size / 1e6:.1f}",
        f"{series.size / first.size:.3f}" if number and series.size and first.size else "",
        "" if size_target is None else f"≤ {size_target:.2f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
