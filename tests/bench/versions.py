"""``python -m tests.bench.versions``: layerfarm of several commits or on several Pythons, side by side."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.bench import report, trees
from tests.bench.__main__ import CACHE, MEMORY
from tests.bench.operations import Comparison
from tests.bench.place import Command, Place


@click.command()
@click.argument("commands", nargs=-1, required=True, metavar="NAME=COMMAND…")
@click.option("--tree", "names", multiple=True, default=("minbase", "many"), type=click.Choice(list(trees.TREES)))
@click.option("--times", default=5, show_default=True, type=click.IntRange(1), help="Runs of each command.")
def main(commands: tuple[str, ...], names: tuple[str, ...], times: int) -> None:
    """Measure layerfarm as each COMMAND runs it; ratios are to the first.

    A COMMAND may have arguments, such as "3.13=chroot /srv/trixie /opt/venv/bin/layerfarm". It must see the trees in
    .cache/bench and the scratch space in /dev/shm at their own paths.
    """
    programs = {name: shlex.split(command) for name, _, command in (text.partition("=") for text in commands)}
    comparisons: list[Comparison] = []
    for tree in names:
        root = trees.get(tree, CACHE.absolute())
        trees.census(root)  # and the cache is warm then
        with tempfile.TemporaryDirectory(prefix="layerfarm-bench-", dir=MEMORY) as directory:
            place = Place(tree, root, Path(directory), times, on="tmpfs")
            for operation, command in _operations(place).items():
                subjects = {name: place.repeat("new", _after(program, command)) for name, program in programs.items()}
                comparisons.append(Comparison(operation, tree, "tmpfs", place.measure(subjects)))
                click.echo(report.table(comparisons[-1:]) + "\n", err=True)
    click.echo(report.table(comparisons))


def _operations(place: Place) -> dict[str, Callable[[Path], Command]]:
    """Return the arguments of each operation, for a path at which it may make something."""
    image = f"{place.layout()}:gzip"
    bundle = place.bundle("layerfarm", "gzip")

    def build(codec: str) -> Callable[[Path], Command]:
        target = f"{place.layout()}:built"
        return lambda new: ["build", "--rootfs", place.root, "--image", target, "--compress", codec]

    return {
        "hash to manifest": lambda new: ["mtree", "--output", new, place.root],
        "build, gzip": build("gzip"),
        "build, zstd": build("zstd"),
        "unpack": lambda new: ["unpack", "--image", image, new],
        "repack, no change": lambda new: ["repack", "--image", f"{place.layout()}:same", bundle],
        "start-up, ls": lambda new: ["ls", "--layout", place.layout()],
    }


def _after(program: list[str], command: Callable[[Path], Command]) -> Callable[[Path], Command]:
    return lambda new: [*program, *command(new)]


if __name__ == "__main__":
    main()
