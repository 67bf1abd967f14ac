"""Progress of a catalog's run: the live table, plain lines, or nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.live import Live

from layerfarm.worker.cli import catalog_view
from layerfarm.worker.cli.catalog_view import CatalogView


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 100 columns."""
    written = io.StringIO()

    def live(render: Callable[[], object]) -> Live:
        console = Console(file=written, force_terminal=True, width=100, height=40)
        return Live(get_renderable=render, console=console, auto_refresh=False, transient=True)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog_view, "_live", live)
    return written


def text(screen: io.StringIO) -> str:
    """Output since the last call, without the terminal's control sequences."""
    found = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    screen.seek(0)
    screen.truncate()
    return found


def test_the_live_table_shows_how_many_are_done_the_rate_what_failed_and_what_is_worked_on(
    screen: io.StringIO,
) -> None:
    with CatalogView("bar") as view:
        view.step("transform", 4)
        view.working("web/api:1.0", "pack 3/60")
        view.ended("web/front:1.0", None, 5_000_000)
        view.ended("web/front:2.0", "a layer is broken")
        view._live.refresh()
        shown = text(screen)
        assert "web/front:2.0: a layer is broken" in shown
        assert "transform" in shown
        assert "2/4" in shown
        assert "5.0 MB" in shown
        assert re.search(r"B/s, 1 failed", shown)
        assert "left" in shown
        assert re.search(r"web/api:1.0 +pack 3/60", shown)
        view.step("push", 1)
        assert "transform: 2 of 4 images, 5.0 MB" in text(screen)
        for number in range(20):
            view.working(f"image {number}", "push")
        view._live.refresh()
        assert "and 8 more" in text(screen)


def test_plain_lines_say_each_step_and_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    with CatalogView("plain") as view:
        view.step("fetch", 2)
        view.ended("a:1", None, 10)
        view.ended("a:2", "no such tag")
    assert capsys.readouterr().err.splitlines() == [
        "layerfarm: fetch: 2 images",
        "layerfarm: fetch 1/2 a:1",
        "layerfarm: a:2: no such tag",
    ]


def test_only_notices_are_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with CatalogView("auto") as view:  # stderr is no terminal
        view.step("fetch", 1)
        view.ended("a:1", "no such tag")
        view.notice("no worker is listening")
        view.notice("no worker is listening")
    assert capsys.readouterr().err == "layerfarm: no worker is listening\n"
