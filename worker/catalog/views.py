"""Views of a catalog's run: the steps, the images, and the progress of their jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from layerfarm.worker.catalog.backends import Task
from layerfarm.worker.model import Progress


class View(Protocol):
    """Displays progress. Called from any thread."""

    def step(self, name: str, total: int) -> None:
        """Begin a step with this number of images."""

    def working(self, name: str, what: str) -> None:
        """Show that an image is being processed."""

    def ended(self, name: str, error: str | None, nbytes: int = 0) -> None:
        """Show that an image has ended this step; ``nbytes`` were fetched, written or sent for it."""

    def notice(self, text: str) -> None:
        """Show a message."""


class Shower:
    """Shows the progress of jobs on a view.

    Each job is passed to ``record``, so that the next run finds it if this one is killed.
    """

    def __init__(self, view: View, record: Callable[[Task, str], object] = lambda task, job: None) -> None:
        self._view = view
        self._record = record

    def submitted(self, task: Task, job: str) -> None:
        self._record(task, job)
        self._view.working(task.name, "queued")

    def progress(self, task: Task, progress: Progress) -> None:
        if progress.notice:
            self._view.notice(progress.notice)
        if progress.stage:
            self._view.working(task.name, f"{progress.stage} {progress.units_done}/{progress.units_total}")
