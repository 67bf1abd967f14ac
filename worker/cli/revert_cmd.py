"""``layerfarm revert``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import PathType, layout_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("revert", cls=GoStyleCommand)
@layout_option
@click.argument("bundle", type=PathType())
def command(layout: Path, bundle: Path) -> None:
    """Revert the root filesystem of BUNDLE to its image, touching only what differs.

    The image is the one in the layout from which BUNDLE was unpacked, or to which it was last repacked with
    --refresh-bundle. Afterwards `layerfarm diff` finds no difference. config.json is not changed. After an
    interruption, run it again. Prints nothing; --verbose prints what was done.

    \b
    Example:
      layerfarm revert --layout store bundle
    """
    from contextlib import ExitStack

    from layerfarm.jobs.flows.manifest import read_tree_file
    from layerfarm.jobs.image.bundle import Bundle
    from layerfarm.jobs.image.revert import revert_bundle
    from layerfarm.jobs.store import Layout
    from layerfarm.worker.cli.trees import hashed

    store = Layout.open(layout)
    opened_bundle = Bundle.open(bundle)
    with ExitStack() as opened:
        done = revert_bundle(
            store,
            opened_bundle,
            lambda: read_tree_file(opened.enter_context(opened.enter_context(hashed(opened_bundle.rootfs)).open("rb"))),
        )
    output.info(f"removed: {done.removed}, restored: {done.restored}, metadata restored: {done.adjusted}")
