"""``make pulls``: clients of Debian 12 and 13 pull two tags of a Debian image in each format; a table of what they do.

The second tag differs in one package. Bytes are those that the registry served, by its log. Each client then pulls a
small image whose blob was changed in the registry, and one whose table of contents gives a file the setuid bit.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Final, NamedTuple

import click

from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from tests.catalog.registry import Registry
from tests.debian import bootstrap
from tests.interop.conftest import CACHE
from tests.pulls.clients import CLIENTS, Client
from tests.pulls.images import FORMATS, SETUID, Format, add_lie, build, damage, small, two_tags
from tests.pulls.machine import Failed, Machine, debian
from tests.trees import Node, in_seconds, read_tree

SUITES: Final = {"bookworm": "Debian 12", "trixie": "Debian 13"}
OWN: Final = frozenset((b"stargz.index.json", b".no.prefetch.landmark"))
_FIRST_READ: Final = "usr/bin/perl"
"""File whose cost is measured alone where files are fetched when they are read."""


class Tag(NamedTuple):
    """Outcome of one pull of a tag."""

    size: int
    """Bytes of the layers."""
    served: int
    """Bytes that the registry served of them, once the whole tree was read."""
    partial: bool
    """All answers were ranges."""
    before_reading: int
    """Bytes served when the image was there, and before a file was read."""
    first_file: int
    """Those served for the first file."""
    tree: str


class Row(NamedTuple):
    """Outcome of one format with one client."""

    kind: str
    client: str
    tags: tuple[Tag, Tag] | None
    damaged: str
    lie: str
    error: str = ""

    def cells(self, lazy: bool) -> tuple[str, ...]:
        if self.tags is None:
            return (self.kind, self.client, f"no: {self.error}", *[""] * 5)
        first, second = self.tags
        how = "in part" if second.partial else "whole"
        if lazy:
            how = "when read" if first.before_reading < first.size else "whole"
        share = f"{second.served:,} of {second.size:,} ({100 * second.served / second.size:.1f} %)"
        return (self.kind, self.client, how, f"{first.served:,}", share, self.damaged, self.lie, second.tree)


HEADER: Final = (
    "format", "client", "pulls", "served, first tag", "served, second tag", "changed byte", "false table", "tree",
)  # fmt: skip


class Ground:
    """Registry and images, and the rows of each client."""

    def __init__(self, place: Path, registry: Registry, kinds: list[Format]) -> None:
        self.place = place
        self.registry = registry
        self.kinds = kinds
        self.layouts = {kind: Layout.create(place / f"layout-{number}") for number, kind in enumerate(kinds)}
        trees, self.change = two_tags(_slim(), place)
        self.wanted = [in_seconds(read_tree(rootfs)) for rootfs in trees]
        tiny = small(place / "small")
        self.tiny = in_seconds(read_tree(tiny))
        for number, kind in enumerate(kinds):
            layout = self.layouts[kind]
            tags = {"1": trees[0], "2": trees[1]} | ({} if kind.rechunk else {"damaged": tiny})
            for tag, rootfs in tags.items():
                build(layout.path, rootfs, tag, kind)
            if kind.has_table:
                add_lie(layout, "damaged", "lie")
            for tag in (*tags, *(("lie",) if kind.has_table else ())):
                registry.put(layout.path, tag, f"f{number}/app:{tag}")
            if "damaged" in tags:
                (layer,) = resolve(layout, "damaged").manifest.layers
                damage(registry.blob(layer.digest))

    def rows(self, suite: str, type_: type[Client]) -> Iterator[tuple[Row, bool]]:
        for number, kind in enumerate(self.kinds):
            with tempfile.TemporaryDirectory(dir=self.place) as directory, ExitStack() as stack:
                machine = stack.enter_context(Machine(debian(suite), Path(directory, "place")))
                name = f"{type_.package} {machine.version(type_.package)}, {SUITES[suite]}"
                client = type_(machine)
                tags, error = None, ""
                try:
                    tags = self._tag(client, number, 1), self._tag(client, number, 2)
                except (Failed, OSError) as failed:
                    error = str(failed)[-300:].replace("\n", " ").replace("|", "/")
                damaged = "" if kind.rechunk else self._tampered(client, number, "damaged")
                lie = self._tampered(client, number, "lie") if kind.has_table else ""
                yield Row(kind.name, name, tags, damaged, lie, error), type_.lazy

    def _tag(self, client: Client, number: int, tag: int) -> Tag:
        layers = resolve(self.layouts[self.kinds[number]], str(tag)).manifest.layers
        digests = [layer.digest for layer in layers]
        before = {digest: len(self.registry.served(digest)) for digest in digests}

        def answers() -> list[tuple[int, int]]:
            time.sleep(0.5)  # the log follows the answer
            return [answer for digest in digests for answer in self.registry.served(digest)[before[digest] :]]

        def served() -> int:
            return sum(size for _, size in answers())

        client.pull(self._reference(number, str(tag)))
        root = client.tree(self._reference(number, str(tag)))
        there = served()
        if client.lazy:
            (root / _FIRST_READ).read_bytes()
        first = served() - there
        said = difference(in_seconds(read_tree(root)), self.wanted[tag - 1])
        found = answers()
        partial = bool(found) and all(status == 206 for status, _ in found)
        return Tag(sum(layer.size for layer in layers), sum(size for _, size in found), partial, there, first, said)

    def _tampered(self, client: Client, number: int, tag: str) -> str:
        try:
            client.pull(self._reference(number, tag))
            root = client.tree(self._reference(number, tag))
        except Failed:
            return "refused"
        try:
            found = in_seconds(read_tree(root))
        except OSError:
            return "refused when read"
        if tag == "damaged":
            return "NOT NOTICED" if found.get(b"large") == self.tiny[b"large"] else "TAKEN"
        return "accepted" if found[SETUID].mode & 0o4000 else "ignored"

    def _reference(self, number: int, tag: str) -> str:
        return f"{self.registry.host}/f{number}/app:{tag}"


def difference(found: Mapping[bytes, Node], wanted: Mapping[bytes, Node]) -> str:
    """Say by attribute and type how a tree differs from the one that was built."""
    more = found.keys() - wanted.keys()
    said = []
    if more and more <= OWN:
        said.append("with the two entries")
    elif more:
        said.append(f"{len(more)} more entries")
    if fewer := wanted.keys() - found.keys():
        said.append(f"{len(fewer)} entries missing")
    counts: dict[str, int] = {}
    for path in found.keys() & wanted.keys():
        for each in fields(Node):
            if getattr(found[path], each.name) != getattr(wanted[path], each.name):
                what = f"{each.name} of {'the root' if path == b'.' else wanted[path].type}"
                counts[what] = counts.get(what, 0) + 1
    said += [f"{what}: {count}" for what, count in sorted(counts.items())]
    return "; ".join(said) or "equal"


@click.command()
@click.option("--suite", "suites", multiple=True, type=click.Choice(list(SUITES)), help="Default: both.")
@click.option("--client", "clients", multiple=True, type=click.Choice([each.package for each in CLIENTS]))
@click.option("--format", "formats", multiple=True, type=click.Choice(list(FORMATS)))
def main(suites: tuple[str, ...], clients: tuple[str, ...], formats: tuple[str, ...]) -> None:
    program = shutil.which("docker-registry")
    if os.geteuid() != 0 or program is None:
        print("make pulls needs root, debootstrap, skopeo and docker-registry: make packages", file=sys.stderr)
        sys.exit(1)
    # Unwinds, as an interrupt does: the machines end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rows: list[tuple[Row, bool]] = []
    CACHE.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=CACHE) as directory,
        Registry(Path(directory, "registry"), program) as registry,
    ):
        ground = Ground(Path(directory), registry, [FORMATS[name] for name in formats or FORMATS])
        for suite in suites or SUITES:
            for type_ in CLIENTS:
                if not clients or type_.package in clients:
                    for row, lazy in ground.rows(suite, type_):
                        rows.append((row, lazy))
                        print(" | ".join(row.cells(lazy)), file=sys.stderr, flush=True)
        print(f"\nThe second tag has {ground.change}.\n")
    print(_table(HEADER, [row.cells(lazy) for row, lazy in sorted(rows)]))
    lazily = [(row, tag, each) for row, lazy in rows if lazy and row.tags for tag, each in enumerate(row.tags, 1)]
    if lazily:
        header = (
            "format",
            "client",
            "tag",
            "blob",
            "before a file is read",
            f"then by {_FIRST_READ}",
            "all files read",
        )
        cells = [
            (row.kind, row.client, str(tag), *(f"{n:,}" for n in (t.size, t.before_reading, t.first_file, t.served)))
            for row, tag, t in lazily
        ]
        print("\n" + _table(header, cells))


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def _slim() -> Path:
    slim = CACHE / "bookworm-slim"
    if not slim.exists():
        bootstrap("bookworm", slim, slim=True)
    return slim


if __name__ == "__main__":
    main()
