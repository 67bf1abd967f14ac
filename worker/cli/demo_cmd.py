"""``layerfarm demo``: one build and one unpack, on a private farm that lives as long as the command."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import PathType
from layerfarm.worker.cli.id_map_flags import Remap
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import image_lines
from layerfarm.worker.cli.submission import Outcome, Where, carry_out
from layerfarm.worker.plural import counted


@click.command("demo", cls=GoStyleCommand)
@click.option(
    "--rootfs",
    type=PathType(),
    default=lambda: Path(sysconfig.get_path("purelib")),
    show_default="the Python library that layerfarm is installed in",
    metavar="DIR",
    help="The root filesystem.",
)
@click.option("--store", type=PathType(), default="store", show_default=True, metavar="DIR", help="The layout to use.")
@click.option("--tag", default="demo", show_default=True, help="The tag to give.")
@click.option("--concurrency", default=2, show_default=True, type=click.IntRange(1, 1024), help="Worker processes.")
def command(rootfs: Path, store: Path, tag: str, concurrency: int) -> None:
    """Build an image on a private farm, unpack it through the queue, and compare the two trees.

    Starts a private Redis and a worker, and stops them. The image is kept; the bundle, made beside the store,
    is removed.

    \b
    Example:
      layerfarm demo --rootfs /usr/share/doc --store store --tag demo
    """
    import tempfile

    from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, UnpackRequest
    from layerfarm.jobs.store import Layout, check_refname
    from layerfarm.worker.embedded import EmbeddedFarm

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
        for line in image_lines(built):
            output.say(line)
        bundle = Path(directory) / "bundle"
        remap = Remap.of_this_user()
        unpacked = _done(carry_out(UnpackRequest(image=image, bundle=bundle, **remap.fields()), where))
        output.say(f"job: {unpacked.job_id} succeeded: {counted(unpacked.result.entries, 'entry', 'entries')} unpacked")
        _compare(rootfs, bundle, owners=not remap.rootless)
        output.say(f"trees agree: {rootfs} and the unpacked bundle")
        output.notice("stopping redis and worker")
    for line in _next_steps(store, tag):
        output.say(line)


def _compare(rootfs: Path, bundle: Path, *, owners: bool) -> None:
    """Compare every entry of both trees; without ``owners``, everything except owners.

    Raises:
        MtreeError: they differ; the message has the first difference.
    """
    from contextlib import ExitStack

    from layerfarm.jobs.errors import MtreeError
    from layerfarm.jobs.image.trees import portable
    from layerfarm.jobs.mtree import compare
    from layerfarm.worker.cli.delta_text import human_line
    from layerfarm.worker.cli.trees import open_tree

    with ExitStack() as opened:
        sides = [portable(open_tree(str(tree), opened).entries) for tree in (rootfs, bundle)]
        if not owners:
            sides = [(entry._replace(uid=0, gid=0) for entry in side) for side in sides]
        for delta in compare(*sides):
            raise MtreeError(
                f"the unpacked tree differs from the one that was built, {human_line(delta)}", where=rootfs
            )


def _next_steps(store: Path, tag: str) -> list[str]:
    """Return commands to try next, as they work in this directory."""
    program = shlex.quote(_program())
    image = shlex.quote(f"{_short(store)}:{tag}")
    return [
        "next:",
        f"  {program} build --rootfs DIR --image {shlex.quote(_short(store))}:mine   # your own tree",
        f"  {program} stat --image {image}   # look into the image",
        f"  {program} worker --help   # the farm on several machines: docs/farm.md",
    ]


def _program() -> str:
    """Return the running command, as short as it can be typed here."""
    found = shutil.which("layerfarm")
    if found is not None and os.path.realpath(found) == os.path.realpath(sys.argv[0]):
        return "layerfarm"
    return _short(Path(sys.argv[0]))


def _short(path: Path) -> str:
    """Return the path relative to this directory if it is below it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _done(outcome: Outcome | None) -> Outcome:
    assert outcome is not None  # detached jobs do not occur here
    return outcome
