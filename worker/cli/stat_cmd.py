"""``layerfarm stat``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.flags import Image, image_option, platform_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("stat", cls=GoStyleCommand)
@image_option()
@platform_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(image: Image, platform: str | None, as_json: bool) -> None:
    """Shows the manifest, the configuration and the history of an image.

    Programs should use --json: the text is for people, and may change.

    \b
    Example:
      layerfarm stat --image store:v1 --json
    """
    import json

    from layerfarm.jobs.image import resolve
    from layerfarm.jobs.image.stat import stat_json, stat_text
    from layerfarm.jobs.store import Layout

    layout = Layout.open(image.layout)
    found = resolve(layout, image.tag, platform)
    if as_json:
        click.echo(json.dumps(stat_json(layout, found), ensure_ascii=False, separators=(",", ":")))
    else:
        click.echo(stat_text(found), nl=False)
