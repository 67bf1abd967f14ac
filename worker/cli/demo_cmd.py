"""``layerfarm demo``: the whole of layerfarm once, on a farm that lives as long as the command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from worker.cli import output
from worker.cli.flags import PathType
from worker.cli.parsing import GoStyleCommand
from worker.cli.result_text import image_lines
from worker.cli.submission import Outcome, Where, carry_out


@click.command("demo", cls=GoStyleCommand)
@click.option("--rootfs", type=PathType(), default="/usr/share", show_default=True, metavar="DIR", help="The tree.")
@click.option("--store", type=PathType(), default="store", show_default=True, metavar="DIR", help="The layout to use.")
@click.option("--tag", default="demo", show_default=True, help="The tag to give.")
@click.option("--concurrency", default=2, show_default=True, type=click.IntRange(1, 1024), help="Worker processes.")
def command(rootfs: Path, store: Path, tag: str, concurrency: int) -> None:
    """Builds an image on a farm of its own, unpacks it through the queue, and compares the two trees.

    Starts a private Redis and a worker, and stops them. The image stays; the bundle, made beside the store,
    is removed.

    \b
    Example:
      layerfarm demo --rootfs /usr/share --store store --tag demo
    """
    import tempfile

    from jobs.errors import MtreeError
    from jobs.flows.requests import BuildRequest, ImageRef, UnpackRequest
    from jobs.store import Layout, check_refname
    from worker.embedded import EmbeddedFarm

    check_refname(tag)
    store = store.absolute()
    if not store.exists():
        Layout.create(store)
    image = ImageRef(store=store, tag=tag)
    with (
        tempfile.TemporaryDirectory(prefix=".layerfarm-demo-", dir=store.parent) as directory,
        EmbeddedFarm(concurrency=concurrency, roots=[rootfs.absolute(), Path(directory)], stores=[store]) as farm,
    ):
        where = Where(farm.url, False, None, None, "bar" if sys.stderr.isatty() else "plain")
        built = _done(carry_out(BuildRequest(rootfs=rootfs.absolute(), image=image), where))
        for line in image_lines(built.job_id, built.result):
            click.echo(line)
        bundle = Path(directory) / "bundle"
        unpacked = _done(carry_out(UnpackRequest(image=image, bundle=bundle), where))
        if unpacked.result.mtree != built.result.mtree:
            raise MtreeError(
                f"manifests differ: {built.result.mtree} was built, {unpacked.result.mtree} was unpacked", where=rootfs
            )
        click.echo(f"job: {unpacked.job_id} succeeded: {unpacked.result.entries} entries unpacked")
        click.echo(f"manifests agree: {unpacked.result.mtree}")
        output.notice("stopping redis and worker")


def _done(outcome: Outcome | None) -> Outcome:
    assert outcome is not None  # nothing here is detached
    return outcome
