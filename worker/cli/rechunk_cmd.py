"""``layerfarm rechunk``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli.flags import Image, ImageType, PathType
from layerfarm.worker.cli.layer_flags import Layering, compress_options, source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform_lines, transform_options


@click.command("rechunk", cls=GoStyleCommand)
@click.option(
    "--budget",
    metavar="N",
    type=click.IntRange(2, 120),
    default=64,
    show_default=True,
    help="Maximum number of layers.",
)
@click.option(
    "--plan",
    type=PathType(),
    metavar="FILE",
    help="A plan written by `layerfarm catalog plan`; default: plan for this image.",
)
@click.option("--keep-base", type=ImageType(), metavar="PATH[:TAG]", help="Keep the layers of this image, the base.")
@click.option("--keep", metavar="N", type=click.IntRange(0), default=0, help="Keep the N lowest layers.")
@click.option(
    "--component",
    "components",
    metavar="NAME=PATTERN",
    multiple=True,
    help="Paths that form a component, regardless of package databases. Repeatable.",
)
@compress_options
@transform_options
def command(
    budget: int,
    plan: Path | None,
    keep_base: Image | None,
    keep: int,
    components: tuple[str, ...],
    layering: Layering,
    making: Making,
    where: Where,
) -> None:
    """Split an image, on every platform, into layers by content: by packages and by what changes together.

    Owners of files are read from the image: dpkg, apk, rpm, pacman, Python, npm, gems, jars. Equal content
    gives equal layers in all images, independent of directory times, which are in the last layer. The image
    is tagged only after its files are verified to match the original, times to the nanosecond.
    $SOURCE_DATE_EPOCH clamps mtimes.

    \b
    Examples:
      layerfarm rechunk --image store:v1 --target store:v1-chunks
      layerfarm rechunk --image store:v1 --keep-base store:debian --budget 40
      layerfarm rechunk --image store:v1 --plan plan.json --component 'models=/srv/models/*'
    """
    from layerfarm.jobs.flows.transforms import RechunkRequest
    from layerfarm.jobs.relayer.planner.plan import parse_plan
    from layerfarm.jobs.relayer.rechunk import put_plan
    from layerfarm.jobs.store import Layout

    digest = None
    if plan is not None:
        digest = put_plan(Layout.open(making["target"].store), parse_plan(_content(plan), str(plan)))
    request = RechunkRequest.model_validate(
        making
        | layering._asdict()
        | {
            "budget": budget,
            "plan": digest,
            "base": None if keep_base is None else keep_base.ref(),
            "keep": keep,
            "components": _rules(components),
            "source_date_epoch": source_date_epoch(),
        }
    )
    show(request, where, transform_lines)


def _content(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise click.UsageError(f"--plan: {plan} cannot be read, {error.strerror}") from error


def _rules(components: tuple[str, ...]) -> list[dict[str, object]]:
    """Group the patterns by name, in the order in which the names first occur."""
    rules: dict[str, list[str]] = {}
    for text in components:
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern):
            raise click.UsageError(f"--component: {text!r} is not NAME=PATTERN")
        rules.setdefault(name, []).append(pattern)
    return [{"name": name, "paths": paths} for name, paths in rules.items()]
