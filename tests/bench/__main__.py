"""``make bench``: layerfarm and its peers side by side."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from tests.bench import disk, report, trees
from tests.bench.kinds import JUDGED, TUNED
from tests.bench.operations import OF_A_KIND, ON_DISK, OPERATIONS, Comparison
from tests.bench.place import Place

CACHE = Path(".cache/bench")
PEERS = ("umoci", "skopeo", "tar", "pigz", "zstd", "bsdtar", "sha256sum", "xargs", "debootstrap", "npm")
MEMORY = Path("/dev/shm")
_ROOM = 5
"""Scratch space of a tree, in times of its size."""


@click.command()
@click.option(
    "--tree",
    "names",
    multiple=True,
    type=click.Choice(list(trees.TREES)),
    help="Default: minbase and those to judge with.",
)
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
    """Measure layerfarm against umoci, tar, sha256sum and cp; print one table with ratios, limits and targets."""
    _check_peers()
    comparisons: list[Comparison] = []
    begin = time.monotonic()
    times = 3 if quick else times
    conditions: dict[str, object] = {"runs": times, "cold": cold}
    for name in names or ("minbase", *(() if quick else JUDGED)):
        root = trees.get(name, CACHE.absolute())
        entries, size = trees.census(root)
        conditions[name] = {"entries": entries, "bytes": size, "packages": _packages(root)}
        of_a_kind = name in {**TUNED, **JUDGED}
        base = scratch or (_on_disk() if cold else _roomy(size))
        with_ext4 = (of_a_kind or name == "many") and not scratch and not cold
        for on, room in _scratch_spaces(base, size, with_ext4=with_ext4):
            with tempfile.TemporaryDirectory(prefix="layerfarm-bench-", dir=room) as directory:
                click.echo(f"{name}: {entries:,} entries, {size / 1e6:,.0f} MB, scratch space {directory}", err=True)
                place = Place(name, root, Path(directory), times, on=on, cold=cold)
                operations = wanted or (OF_A_KIND if of_a_kind else tuple(OPERATIONS))
                for operation in operations if on != "ext4" else [each for each in operations if each in ON_DISK]:
                    comparisons.append(OPERATIONS[operation](place))
                    click.echo(report.table(comparisons[-1:]) + "\n", err=True)
    click.echo(report.table(comparisons))
    report.write_json(comparisons, output, conditions)
    click.echo(f"{time.monotonic() - begin:.0f} s; every run is in {output}", err=True)


def _scratch_spaces(base: Path, size: int, *, with_ext4: bool) -> Iterator[tuple[str, Path]]:
    """Yield each file system to measure on, and a directory there."""
    yield ("tmpfs" if base == MEMORY else "disk"), base
    if with_ext4:
        with ExitStack() as stack:
            try:
                mounted = stack.enter_context(disk.ext4(_on_disk(), max(8 << 30, 2 * _ROOM * size)))
            except RuntimeError as error:
                click.echo(f"NO ROWS ON EXT4: {error}", err=True)
            else:
                yield "ext4", mounted


def _packages(root: Path) -> list[str]:
    """Return the packages that a tree is made of, if they are known."""
    found = trees.contents(root)
    return found.read_text().splitlines() if found.exists() else []


def _roomy(size: int) -> Path:
    """Memory, where the state of a disk does not blur the figures, if there is enough of it."""
    if MEMORY.is_dir() and min(shutil.disk_usage(MEMORY).free, _available()) > _ROOM * size:
        return MEMORY
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
