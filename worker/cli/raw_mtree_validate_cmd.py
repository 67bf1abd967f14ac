"""``layerfarm raw mtree-validate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import PathType
from layerfarm.worker.cli.parsing import GoStyleCommand

if TYPE_CHECKING:
    from layerfarm.jobs.mtree import Delta

_SYNONYMS = {"time": "tar_time", "sha256": "sha256digest", "xattrs": "xattr"}
KEYWORDS = ("type", "size", "uid", "gid", "mode", "link", "nlink", "tar_time", "sha256digest", "xattr", "device")
_UMOCI_KEYWORDS = frozenset(KEYWORDS) - {"device"}


@click.command("mtree-validate", cls=GoStyleCommand)
@click.option("-f", "manifest", type=PathType(), required=True, metavar="FILE", help="The mtree manifest.")
@click.option("-p", "root", type=PathType(), required=True, metavar="DIR", help="The directory to compare with it.")
@click.option("-k", "only", multiple=True, metavar="KEYWORDS", help="Compare only these keywords (a comma list).")
@click.option("-K", "more", multiple=True, metavar="KEYWORDS", help="Compare these too, with -k or --umoci-keywords.")
@click.option("--umoci-keywords", is_flag=True, help="Compare what umoci compares.")
@click.option("--rootless", is_flag=True, help="Accepted for compatibility with umoci; ignored.")
def command(
    manifest: Path,
    root: Path,
    only: tuple[str, ...],
    more: tuple[str, ...],
    umoci_keywords: bool,
    rootless: bool,
) -> None:
    """Compare a directory with an mtree manifest and print the differences. Exit code 1 if there are any.

    All keywords of the manifest are compared, unless -k or --umoci-keywords selects some.

    \b
    Example:
      layerfarm raw mtree-validate -f bundle/sha256_5f0e.mtree -p bundle/rootfs
    """
    from layerfarm.jobs.mtree import compare, read_manifest, snapshot

    wanted: frozenset[str] | None = None
    if only or umoci_keywords:
        wanted = (_keywords(only) or _UMOCI_KEYWORDS) | _keywords(more)
    different = False
    with manifest.open("rb") as stream:
        for delta in compare(read_manifest(stream), snapshot(root)):
            for line in _lines(delta, wanted):
                different = True
                output.echo(line)
    if different:
        raise click.exceptions.Exit(1)


def _keywords(values: tuple[str, ...]) -> frozenset[str]:
    named = [word for value in values for word in value.replace(" ", ",").split(",") if word]
    keywords = frozenset(_SYNONYMS.get(word, word) for word in named)
    for unknown in sorted(keywords - set(KEYWORDS)):
        raise click.UsageError(f"no such keyword: {unknown!r}; there are {', '.join(KEYWORDS)}")
    return keywords


def _lines(delta: Delta, wanted: frozenset[str] | None) -> Iterator[bytes]:
    from layerfarm.jobs.mtree.vis import encode

    name = encode(delta.path)
    if delta.kind != "modified":
        yield b"%s: %s" % (name, delta.kind.encode())
        return
    for key in delta.keys:
        if wanted is None or key.partition(".")[0] in wanted:
            yield b"%s: %s differs%s" % (name, key.encode("utf-8", "surrogateescape"), _values(delta, key))


def _values(delta: Delta, key: str) -> bytes:
    """Return the two values of a keyword, if they are short enough to be useful."""
    old, new = delta.old, delta.new
    field = {"tar_time": "mtime", "sha256digest": "sha256"}.get(key, key)
    if old is None or new is None or field not in old._fields:
        return b""
    before, after = (_shown(field, getattr(entry, field)) for entry in (old, new))
    return f": {before} was recorded, it is {after}".encode("utf-8", "backslashreplace")


def _shown(field: str, value: object) -> str:
    if field == "mtime" and isinstance(value, int):
        return str(value // 1_000_000_000)
    if isinstance(value, bytes):
        return repr(value)[1:]
    return f"0{value:o}" if field == "mode" else str(value)
