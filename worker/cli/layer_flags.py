"""The flags of a new layer and of its history entry, each group parsed into one value."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from layerfarm.worker.cli.flags import CommandT, PathType

if TYPE_CHECKING:
    from layerfarm.jobs.flows.requests import HistoryOptions, LayerOptions
    from layerfarm.jobs.image import HistoryEntry


# --- --history.* -----------------------------------------------------------------------------------


class History(NamedTuple):
    """The values of the history flags."""

    omit: bool
    author: str | None
    comment: str | None
    created: str | None
    created_by: str | None

    def options(self) -> HistoryOptions:
        from layerfarm.jobs.flows.requests import HistoryOptions

        return HistoryOptions(**self._asdict())

    def moment(self) -> str | None:
        """Return the time to be recorded: as given, else ``$SOURCE_DATE_EPOCH``, else none; never the clock."""
        return epoch_time() if self.created is None else self.created

    def entry(self, created_by: str) -> HistoryEntry | None:
        """Return the history entry of a command that is not a flow, or None for ``--no-history``."""
        from layerfarm.jobs.image import HistoryEntry

        if self.omit:
            return None
        return HistoryEntry(
            created=self.moment(),
            created_by=self.created_by if self.created_by is not None else created_by,
            author=self.author,
            comment=self.comment,
        )


def history_options(command: CommandT) -> CommandT:
    """Add ``--no-history`` and the ``--history.*`` flags, passed as ``history``."""

    @click.option("--no-history", is_flag=True, help="Write no history entry.")
    @click.option("--history.author", "history_author", metavar="NAME", help="Author of the history entry.")
    @click.option("--history.comment", "history_comment", metavar="TEXT", help="Comment of the history entry.")
    @click.option(
        "--history.created",
        "history_created",
        metavar="TIME",
        callback=timestamp,
        help="Time of the history entry (2006-01-02T15:04:05Z); without it, $SOURCE_DATE_EPOCH.",
    )
    @click.option("--history.created_by", "history_created_by", metavar="TEXT", help="What made the layer.")
    @functools.wraps(command)
    def with_history(*args: Any, no_history: bool, **others: Any) -> Any:
        fields = [others.pop(f"history_{name}") for name in History._fields[1:]]
        if no_history and any(field is not None for field in fields):
            raise click.UsageError("--no-history and --history.* exclude each other")
        return command(*args, history=History(no_history, *fields), **others)

    return with_history  # type: ignore[return-value]


def timestamp(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the callback of an option that takes an RFC 3339 time (image-spec config.md "created").

    The value is spelled as umoci writes it: +00:00 becomes Z.
    """
    from layerfarm.jobs.image.documents import as_go_writes, is_timestamp

    if value is None:
        return None
    if not is_timestamp(value):
        raise click.BadParameter(f"{value!r} is not a time like 2006-01-02T15:04:05Z")
    return as_go_writes(value)


# --- --compress and other options of a layer --------------------------------------------------------

COMPRESSIONS: Final = ("gzip", "estargz", "zstd", "zstd:chunked", "none")
PULLED_IN_PART: Final = "estargz: gzip that containerd reads lazily; zstd:chunked: zstd that podman pulls in part"


class Layering(NamedTuple):
    """The values of the flags for the new layer."""

    compress: str
    level: int | None
    prefetch: list[str]

    def options(self, history: History) -> LayerOptions:
        """Return the layer options of a request, with ``$SOURCE_DATE_EPOCH``."""
        from layerfarm.jobs.flows.requests import LayerOptions

        return LayerOptions.model_validate(
            self._asdict() | {"history": history.options(), "source_date_epoch": source_date_epoch()}
        )


def compress_options(command: CommandT) -> CommandT:
    """Add ``--compress`` and ``--compress-level``, passed as ``layering``."""

    @click.option(
        "--compress",
        type=click.Choice(["auto", *COMPRESSIONS]),
        default="auto",
        show_default=True,
        help=f"Compression of the layer; {PULLED_IN_PART}; auto: that of the newest compressed layer of the image, "
        "else gzip.",
    )
    @click.option("--compress-level", metavar="N", type=int, help="Level of the chosen compression.")
    @prefetch_option
    @functools.wraps(command)
    def with_layering(*args: Any, compress: str, compress_level: int | None, prefetch: list[str], **others: Any) -> Any:
        return command(*args, layering=Layering(compress, compress_level, prefetch), **others)

    return with_layering  # type: ignore[return-value]


def _paths_in(context: click.Context, option: click.Parameter, file: Path | None) -> list[str]:
    """Return the lines of a file, without empty ones."""
    if file is None:
        return []
    try:
        lines = file.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise click.BadParameter(f"{file} cannot be read, {what}") from error
    return [line for line in lines if line]


def prefetch_option(command: CommandT) -> CommandT:
    """Add ``--prefetch``, passed as a list of paths."""
    return click.option(
        "--prefetch",
        metavar="FILE",
        type=PathType(),
        callback=_paths_in,
        help="With estargz: a file that lists the paths in the image that a workload reads first, one a line; clients "
        "fetch these before they are read.",
    )(command)


def source_date_epoch() -> int | None:
    """Return ``$SOURCE_DATE_EPOCH`` in seconds, or None if it is not set.

    Raises:
        click.UsageError: it is not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    from layerfarm.jobs.image.documents import SECONDS

    if not re.fullmatch(r"-?\d{1,18}", text) or int(text) not in SECONDS:
        raise click.UsageError(f"$SOURCE_DATE_EPOCH is not a number of seconds: {text!r}, or beyond the year 9999")
    return int(text)


def epoch_time() -> str | None:
    """Return ``$SOURCE_DATE_EPOCH`` as RFC 3339, or None if it is not set."""
    from layerfarm.jobs.image.documents import timestamp as written

    epoch = source_date_epoch()
    return None if epoch is None else written(epoch)
