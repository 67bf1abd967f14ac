"""Shared parts of the transform commands: the source, the target, and the final output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from layerfarm.worker.cli.flags import Image, ImageType, image_option
from layerfarm.worker.cli.submission import Outcome, farm_options

if TYPE_CHECKING:
    from layerfarm.jobs.flows.transforms import TransformResult

Making = dict[str, Any]
"""The fields of the request that every transform has."""
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def transform_options(command: CommandT) -> CommandT:
    """Add ``--image``, ``--target`` and ``--referrers``, passed as ``making``; and ``where``."""

    @image_option(help="The image to transform: a layout and a tag, of one image or of several platforms.")
    @click.option(
        "--target",
        type=ImageType(),
        metavar="PATH[:TAG]",
        help="The new image, in this or another layout; default: replace the tag of --image.",
    )
    @click.option(
        "--referrers",
        type=click.Choice(["leave", "carry"]),
        default="leave",
        show_default=True,
        help="SBOMs and other artifacts that refer to the old image: leave them, or let copies refer to the new one"
        " where they stay true of it. Signatures never do.",
    )
    @farm_options
    @functools.wraps(command)
    def with_target(*args: Any, image: Image, target: Image | None, referrers: str, **others: Any) -> Any:
        making = {"image": image.ref(), "target": (target or image).ref(), "referrers": referrers}
        return command(*args, making=making, **others)

    return with_target  # type: ignore[return-value]


def transform_lines(outcome: Outcome) -> list[str]:
    """Return one line for each image, and one for all."""
    result: TransformResult = outcome.result
    lines = []
    for image in result.images:
        what = "unchanged" if image.new == image.old else f"{image.old} -> {image.new}"
        lines.append(f"{image.platform}: {what}")
        if image.new != image.old:
            lines.append(f"  layers: {image.layers_before} -> {image.layers_after}")
            lines.append(f"  bytes: {image.bytes_before} -> {image.bytes_after}")
            lines.append(f"  proof: {image.proof}")
    lines.append(f"image: {result.image} {result.new}")
    return lines
