"""``make bench``: layerfarm and its peers side by side."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import click

from tests.bench import report, trees
from tests.bench.operations import OPERATIONS, Comparison
from tests.bench.place import Place

CACHE = Path(".cache/bench")
PEERS = ("umoci", "skopeo", "tar", "pigz", "zstd", "bsdtar", "sha256sum", "xargs", "debootstrap", "npm")
_ROOM = 5
"""Scratch space of a tree, in times of its size."""


@click.command()
@click.option("--tree", "names", multiple=True, type=click.Choice(list(trees.TREES)), help="Default: minbase and many.")
@click.option("--operation", "wanted", multiple=True, type=click.Choice(list(OPERATIONS)), help="Default: all.")
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Runs of each subject.")
@click.option("--quick", is_flag=True, help="The small tree alone, three runs: under three minutes.")
@click.option("--cold", is_flag=True, help="Drop the caches of the disk before each run (root).")
@click.option("--scratch", type=click.Path(path_type=Path), help="Default: memory if it has room, else the disk.")
@click.option("--json", "output", default=CACHE / "results.json", type=click.Path(path_type=Path), show_default=True)
def main(
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    times: int,
    quick: bool,
    cold: bool,
    scratch: Path | None,
    output: Path,
) -> None:
    """Measure layerfarm against umoci, tar, sha256sum and cp; print one table with ratios and targets."""
    _check_peers()
    comparisons: list[Comparison] = []
    begin = time.monotonic()
    places = {}
    for name in names or (("minbase",) if quick else ("minbase", "many")):
        root = trees.get(name, CACHE.absolute())
        entries, size = trees.census(root)
        base = scratch or (_on_disk() if cold else _roomy(size))
        places[name] = {"entries": entries, "bytes": size, "scratch": str(base)}
        click.echo(f"{name}: {entries:,} entries, {size / 1e6:,.0f} MB, scratch space {base}", err=True)
        with tempfile.TemporaryDirectory(prefix="layerfarm-bench-", dir=base) as directory:
            place = Place(name, root, Path(directory), 3 if quick else times, cold=cold)
            for operation in wanted or OPERATIONS:
                comparison = OPERATIONS[operation](place)
                comparisons.append(comparison)
                click.echo(report.table([comparison]) + "\n", err=True)
    click.echo(report.table(comparisons))
    report.write_json(comparisons, output, {"trees": places, "runs": 3 if quick else times, "cold": cold})
    click.echo(f"{time.monotonic() - begin:.0f} s; every run is in {output}", err=True)


def _roomy(size: int) -> Path:
    """Memory, where the state of a disk does not blur the figures, if there is enough of it."""
    memory = Path("/dev/shm")
    if memory.is_dir() and min(shutil.disk_usage(memory).free, _available()) > _ROOM * size:
        return memory
    return _on_disk()


def _on_disk() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE.absolute()


def _check_peers() -> None:
    """Refuse to print a table with peers missing."""
    missing = [name for name in PEERS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        raise click.ClickException(f"not installed: {', '.join(missing)}; 'make packages' installs them on Debian")


def _available() -> int:
    """Bytes of memory that no process needs; the free memory of a tmpfs may be in use."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
