"""Progress of a catalog's run on stderr: a live table on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from layerfarm.worker.catalog.quantities import size_text
from layerfarm.worker.cli import output
from layerfarm.worker.plural import counted

_ROWS: Final = 12
"""Images that the table shows at a time."""


class CatalogView:
    """Shows the steps of a run; a context manager. ``mode`` is one of ``layerfarm.worker.cli.progress_view.MODES``.

    ``bar`` is the live table: for the step the images done, their total, the failed ones, bytes, bytes a second and
    the time left; below it the images in progress.
    """

    def __init__(self, mode: str) -> None:
        self._mode = ("bar" if sys.stderr.isatty() else "none") if mode == "auto" else mode
        self._lock = threading.Lock()
        self._working: dict[str, str] = {}
        self._step = ""
        self._total = self._done = self._failed = self._bytes = 0
        self._began = time.monotonic()
        self._live: Any = None
        self._bar: Any = None
        self._task: Any = None
        self._notices: set[str] = set()

    def __enter__(self) -> Self:
        if self._mode == "bar":
            self._live = _live(self._render)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_step()
        if self._live is not None:
            self._live.stop()

    # --- layerfarm.worker.catalog.views.View ---------------------------------------------------------------

    def step(self, name: str, total: int) -> None:
        self._finish_step()
        with self._lock:
            self._step, self._total = name, total
            self._done = self._failed = self._bytes = 0
            self._began = time.monotonic()
            self._working.clear()
            if self._live is not None:
                self._bar = _bar()
                self._task = self._bar.add_task(name, total=total, detail="")
        if self._mode == "plain":
            output.notice(f"{name}: {counted(total, 'image')}")

    def working(self, name: str, what: str) -> None:
        with self._lock:
            self._working[name] = what

    def ended(self, name: str, error: str | None, nbytes: int = 0) -> None:
        with self._lock:
            self._working.pop(name, None)
            self._done += 1
            self._failed += error is not None
            self._bytes += nbytes
            text = self._detail()
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done, detail=text)
        if error is not None and self._mode != "none":
            output.notice(f"{name}: {error}")
        elif self._mode == "plain":
            output.notice(f"{self._step} {self._done}/{self._total} {name}")

    def notice(self, text: str) -> None:
        with self._lock:
            known = text in self._notices
            self._notices.add(text)
        if not known:
            output.notice(text)

    # --- inside ----------------------------------------------------------------------------------

    def _detail(self) -> str:
        seconds = max(time.monotonic() - self._began, 0.001)
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{size_text(self._bytes)}, {size_text(int(self._bytes / seconds))}/s{failed}"

    def _finish_step(self) -> None:
        """Leave one line of a finished step on the screen."""
        with self._lock:
            if self._bar is not None:
                line = f"{self._step}: {self._done} of {self._total} images, {self._detail()}"
                self._bar = None
                self._live.console.print(line, markup=False, highlight=False)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        with self._lock:
            if self._bar is None:
                return Group()
            rows = list(self._working.items())
            table = Table("image", "doing", box=None, pad_edge=False, header_style="dim")
            for name, what in rows[:_ROWS]:
                table.add_row(name, what)
            if len(rows) > _ROWS:
                table.add_row(f"and {len(rows) - _ROWS} more", "")
            return Group(self._bar, table) if rows else Group(self._bar)


def _live(render: Any) -> Any:
    from rich.console import Console
    from rich.live import Live

    return Live(get_renderable=render, console=Console(stderr=True), refresh_per_second=4, transient=True)


def _bar() -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
