"""``layerfarm stat``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option, platform_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("stat", cls=GoStyleCommand)
@image_option()
@platform_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(image: Image, platform: str | None, as_json: bool) -> None:
    """Show the manifest, the configuration and the history of an image, or the manifest of an artifact.

    Programs should use --json: the text is for people, and may change.

    \b
    Example:
      layerfarm stat --image store:v1 --json
    """
    import json

    from layerfarm.jobs.image import resolve_walk
    from layerfarm.jobs.image.resolve import choose, read_artifact
    from layerfarm.jobs.image.stat import artifact_json, artifact_text, stat_json, stat_text
    from layerfarm.jobs.store import Layout

    layout = Layout.open(image.layout)
    walk = choose(layout, image.tag, platform)
    artifact = read_artifact(layout, walk[-1])
    if artifact is None:
        found = resolve_walk(layout, walk)
        shown = stat_json(layout, found) if as_json else stat_text(found)
    else:
        shown = artifact_json(layout, walk[-1], artifact) if as_json else artifact_text(walk[-1], artifact)
    if isinstance(shown, str):
        output.echo(shown, nl=False)
    else:
        output.echo(json.dumps(shown, ensure_ascii=False, separators=(",", ":")))
