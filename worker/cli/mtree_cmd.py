"""``layerfarm mtree``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from layerfarm.worker.cli.flags import PathType
from layerfarm.worker.cli.output import to_stdout
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where, farm_options


@click.command("mtree", cls=GoStyleCommand)
@click.option("-o", "--output", type=PathType(), metavar="FILE", help="Write to FILE; without it, to stdout.")
@farm_options
@click.argument("directory", metavar="DIR", type=PathType())
def command(output: Path | None, where: Where, directory: Path) -> None:
    """Write the mtree manifest of DIR: every entry with type, mode, owner, size, times, SHA-256 and xattrs.

    Lines have full paths in a fixed order; the bytes do not depend on the number of processes. Compare with it
    later by `layerfarm diff`. With a farm, --output is required, on a disk that the workers share.

    \b
    Examples:
      layerfarm mtree /srv/rootfs -o before.mtree
      layerfarm mtree /srv/rootfs | gzip >rootfs.mtree.gz
    """
    from layerfarm.jobs.flows.manifest import ManifestRequest
    from layerfarm.worker.cli.trees import hashed

    if output is None:
        if where.as_json:
            raise click.UsageError("--json needs --output: stdout takes the manifest")
        if where.detach:
            raise click.UsageError("--detach needs --output")
        with hashed(directory, where) as manifest, manifest.open("rb") as stream, to_stdout():
            shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
        return
    request = ManifestRequest(rootfs=directory.absolute(), output=output.absolute())
    show(request, where, lambda done: [f"mtree: {done.result.mtree}", f"entries: {done.result.entries}"], quiet=True)
