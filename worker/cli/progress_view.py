"""Progress of a running job on stderr: a bar on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from layerfarm.jobs.errors import display
from layerfarm.worker.cli import output

if TYPE_CHECKING:
    from layerfarm.worker.model import Progress

MODES: Final = ("auto", "bar", "plain", "none")

_BAR_AFTER = 0.5
"""Seconds. Importing rich takes longer than repacking a small image, which needs no bar."""


class ProgressView:
    """Shows progress; a context manager, so that a bar is always removed.

    ``auto`` is ``bar`` if stderr is a terminal, else ``none``. Notices are printed in every mode.
    """

    def __init__(self, mode: str) -> None:
        self._mode = ("bar" if sys.stderr.isatty() else "none") if mode == "auto" else mode
        self._began = time.monotonic()
        self._notice: str | None = None
        self._stage = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Display ``progress``, the newest state of the job."""
        if progress.notice != self._notice:
            self._notice = progress.notice
            if progress.notice:
                output.notice(progress.notice)
        if self._mode == "plain":
            self._show_line(progress)
        elif self._mode == "bar":
            self._show_bar(progress)

    def _show_line(self, progress: Progress) -> None:
        if progress.stage and progress.stage != self._stage:
            self._stage = progress.stage
            size = f", {megabytes(progress.bytes_total)}" if progress.bytes_total else ""
            units = f"{progress.units_total} unit{'s' if progress.units_total != 1 else ''}"
            output.notice(f"{progress.kind} {progress.stage_number}/{progress.stages} {progress.stage}: {units}{size}")

    def _show_bar(self, progress: Progress) -> None:
        if self._bar is None:
            if time.monotonic() - self._began < _BAR_AFTER or progress.state.final:
                return
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task("", total=None, amount="")
        done, total, amount = progress.units_done, progress.units_total, ""
        if progress.bytes_total:
            done, total = min(progress.bytes_done, progress.bytes_total), progress.bytes_total
            amount = f"{megabytes(done)} of {megabytes(total)}"
        stage = f"{progress.stage_number}/{progress.stages} {progress.stage}" if progress.stage else progress.state
        self._bar.update(
            self._task,
            description=display(f"{progress.kind} {stage}"),
            completed=done,
            total=total or None,
            amount=amount,
        )


def megabytes(count: int) -> str:
    """Format ``count`` bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count:,} B"


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
