"""The process of one run for ``catalog serve``: its request, its outcome, and the end of its stdin."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.backends import Task
from layerfarm.worker.cli.catalog_part import _Log, _Stopped, _Until
from tests.unit.image.images import image, tar

COMMAND = (sys.executable, "-P", "-m", "layerfarm.worker.cli.catalog_part")


def request(directory: Path, **fields: Any) -> bytes:
    """A request for the whole catalog of a layout with two images, of which ``bad`` lacks its layer."""
    path = directory / "c.yaml"
    path.write_text(
        "store: store\nsources: [{layout: images}]\n"
        "policies: [{match: '*', do: {transform: recompress, compress: zstd}}]\n"
    )
    layout = Layout.create(directory / "images")
    image(layout, [tar(("a", b"a"))], tag="good:1")
    Path(layout.blob_path(image(layout, [tar(("b", b"b"))], tag="bad:1").manifest.layers[0].digest)).unlink()
    asked = {"file": str(path), "names": [], "whole": True, "farm": None, "at_once": 1, "processes": 1}
    return json.dumps(asked | fields).encode() + b"\n"


def run(line: bytes, *, stop: bool = False) -> dict[str, Any]:
    """Run the process; its stdin stays open unless it is to ``stop``."""
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    if stop:
        process.stdin.close()
    answer = process.stdout.read()
    assert process.wait() == 0
    process.stdin.close()
    found: dict[str, Any] = json.loads(answer)
    return found


@pytest.mark.large
def test_the_outcome_names_the_images_that_failed(tmp_path: Path) -> None:
    outcome = run(request(tmp_path))
    assert list(outcome) == ["failed"] and list(outcome["failed"]) == ["bad:1"]
    assert Layout.open(tmp_path / "store").find("new/good:1")


@pytest.mark.large
def test_a_run_that_fails_as_a_whole_says_why(tmp_path: Path) -> None:
    line = request(tmp_path, file=str(tmp_path / "absent.yaml"))
    assert "catalog file cannot be read" in run(line)["error"]


@pytest.mark.large
def test_at_the_end_of_stdin_it_stops_and_the_next_run_continues(tmp_path: Path) -> None:
    line = request(tmp_path)
    outcome = run(line, stop=True)
    assert outcome == {"stopped": True} or list(outcome) == ["failed"]
    assert list(run(line)["failed"]) == ["bad:1"]


def test_after_a_stop_no_task_begins_and_those_that_began_are_recorded() -> None:
    stop = threading.Event()
    ended: list[str] = []

    class Backend:
        def run(self, tasks: Any, done: Any, watcher: Any) -> None:
            for task in tasks:
                stop.set()
                done(task, None, None)

    tasks = [Task(name, None) for name in ("1", "2")]  # type: ignore[arg-type]
    with pytest.raises(_Stopped):
        _Until(Backend(), stop).run(tasks, lambda task, *_: ended.append(task.name), None)  # type: ignore[arg-type]
    assert ended == ["1"]


def test_a_stop_ends_the_run_between_steps_and_transfers_but_not_in_a_transform() -> None:
    stop = threading.Event()
    view = _Log(stop)
    view.step("transform", 1)
    stop.set()
    view.working("a:1", "pack 1/2")
    view.ended("a:1", None)
    for call in (lambda: view.step("push", 1), lambda: view.working("a:1", "push")):
        with pytest.raises(_Stopped):
            call()
    stop.clear()
    view.step("fetch", 1)
    stop.set()
    with pytest.raises(_Stopped):
        view.ended("a:1", None)


def test_a_thread_that_waits_for_the_end_of_stdin_does_not_hinder_a_fork() -> None:
    """multiprocessing closes sys.stdin in each child, which would wait for the lock of a thread that reads it."""
    source = Path(sys.modules[_Log.__module__].__file__ or "").read_text()
    assert "sys.stdin" not in "".join(line.partition("#")[0] for line in source.splitlines())
