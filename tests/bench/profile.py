"""``make profile``: a flame graph of each operation, with all its processes and threads, by py-spy."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.bench import trees
from tests.bench.__main__ import CACHE
from tests.bench.place import Command, Place

OUTPUT = Path(".cache/profile")
_RATE = 250
"""Samples a second."""

Prepare = Callable[[Place], Command]


def _repack(bundle: Callable[[Place], Path], *options: str) -> Prepare:
    return lambda place: ["repack", *options, "--image", f"{place.layout()}:profile", bundle(place)]


def _unpack(tag: str, *command: str) -> Prepare:
    return lambda place: [*command, "unpack", "--image", f"{place.layout()}:{tag}", place.fresh("out")]


OPERATIONS: dict[str, Prepare] = {
    "hash": lambda place: ["mtree", "--output", place.fresh("manifest"), place.root],
    "repack-gzip": _repack(lambda place: place.full_bundle("layerfarm"), "--compress=gzip"),
    "repack-zstd": _repack(lambda place: place.full_bundle("layerfarm"), "--compress=zstd"),
    "unchanged": _repack(lambda place: place.bundle("layerfarm", "gzip")),
    "touched": _repack(lambda place: place.touched_bundle("layerfarm")),
    "unpack-umoci": _unpack("umoci"),
    "unpack-gzip": _unpack("gzip"),
    "unpack-zstd": _unpack("zstd"),
    "raw-unpack": _unpack("umoci", "raw"),
    "insert": lambda place: ["insert", "--image", f"{place.layout()}:empty", "--tag", "inserted", place.root, "/"],
    "gc": lambda place: ["gc", "--layout", place.layout()],
}


@click.command()
@click.option("--tree", default="minbase", show_default=True, type=click.Choice(list(trees.TREES)))
@click.option("--operation", "wanted", multiple=True, type=click.Choice(list(OPERATIONS)), help="Default: all.")
def main(tree: str, wanted: tuple[str, ...]) -> None:
    """Profile layerfarm's operations on a tree into .cache/profile/TREE-OPERATION.svg."""
    root = trees.get(tree, CACHE.absolute())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layerfarm-profile-", dir=CACHE.absolute()) as scratch:
        place = Place(tree, root, Path(scratch), times=1)
        for name in wanted or OPERATIONS:
            svg = OUTPUT / f"{tree}-{name}.svg"
            _record(["layerfarm", *map(str, OPERATIONS[name](place))], svg)
            click.echo(svg)


def _record(command: list[str], svg: Path) -> None:
    recorder = ["py-spy", "record", "--subprocesses", "--threads", "--rate", str(_RATE), "--output", str(svg)]
    done = subprocess.run([*recorder, "--", *command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode or not svg.exists():
        raise click.ClickException(f"py-spy: {done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    main()
