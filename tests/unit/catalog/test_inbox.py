"""The inbox of a served catalog: whatever was acknowledged survives a crash at any point."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import CatalogError, StoreError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.serve.inbox import Inbox

Step = tuple[str, Any]
STEPS: list[Step] = [
    ("add", (["a:1", "b:1"], ["id 1"])),
    ("add", (["a:1"], ["id 2"])),
    ("done", {"a:1": 1, "b:1": 1}),
    ("add", (["c:1"], [])),
    ("scheduled", 1000.5),
    ("done", {"a:1": 2}),
    ("add", (["b:1", "d:*"], ["id 3", "id 4"])),
    ("done", {"c:1": 3, "missing": 9}),
]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return Layout.create(tmp_path / "store").path


def opened(layout: Path, **limits: int) -> Inbox:
    return Inbox(layout, layout / ".layerfarm/catalog/c", **limits)


def journal(layout: Path) -> Path:
    return layout / ".layerfarm/catalog/c/inbox.journal"


def do(inbox: Inbox, step: Step) -> None:
    operation, argument = step
    getattr(inbox, operation)(*(argument if operation == "add" else (argument,)))


def content(inbox: Inbox) -> tuple[Any, ...]:
    ids = [one for one in ("id 1", "id 2", "id 3", "id 4") if inbox.knows(one)]
    return dict(inbox.pending), ids, inbox.ran


def after(steps: int, layout: Path) -> tuple[Any, ...]:
    """The content after the first steps, without any crash."""
    inbox = opened(layout)
    for step in STEPS[:steps]:
        do(inbox, step)
    inbox.close()
    journal(layout).unlink()
    return content(inbox)


@pytest.fixture
def right(layout: Path) -> list[tuple[Any, ...]]:
    return [after(number, layout) for number in range(len(STEPS) + 1)]


def test_pushes_wait_until_they_were_run_and_a_later_push_waits_again(layout: Path) -> None:
    inbox = opened(layout)
    for step in STEPS:
        do(inbox, step)
    assert content(inbox) == ({"b:1": 4, "d:*": 4}, ["id 1", "id 2", "id 3", "id 4"], 1000.5)
    inbox.close()
    again = opened(layout)
    assert content(again) == content(inbox)
    again.add(["e:1"])
    assert again.pending["e:1"] == 5


@pytest.mark.large
def test_every_prefix_of_the_journal_has_all_acknowledged_entries(layout: Path, right: list[tuple[Any, ...]]) -> None:
    inbox = opened(layout)
    ends = [journal(layout).stat().st_size]
    for step in STEPS:
        do(inbox, step)
        ends.append(journal(layout).stat().st_size)
    inbox.close()
    whole = journal(layout).read_bytes()
    assert ends[-1] == len(whole)
    for length in range(ends[0], len(whole) + 1):
        for tail in (b"", b"\0" * 20, b"\xff\n") if length in (*ends, ends[1] + 9) else (b"",):
            journal(layout).write_bytes(whole[:length] + tail)
            found = opened(layout)
            # A record without its end of line is whole, too.
            assert content(found) == right[sum(end - 1 <= length for end in ends) - 1]
            found.add(["next:1"])
            found.close()
            if tail:
                found = opened(layout)
                assert "next:1" in found.pending
                found.close()


class Crash(BaseException):
    """The machine stops here."""


CALLS = ("write", "fsync", "fdatasync", "rename", "ftruncate")


def crash_at(number: int, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Crash at the given call of the system, from 0; a write does ``cut`` bytes before."""
    count = 0

    def crashing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > number:
                if name == "write" and count == number + 1:
                    real(args[0], bytes(args[1])[:cut])
                raise Crash
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, crashing(name, getattr(os, name)))


@pytest.mark.large
@pytest.mark.parametrize("cut", [0, 1, 30, 10_000])
def test_a_crash_at_any_call_of_the_system_loses_nothing(
    layout: Path, right: list[tuple[Any, ...]], cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is replaced all the time, too."""
    number = crashes = 0
    while True:
        journal(layout).unlink(missing_ok=True)
        acknowledged = 0
        inbox = None
        with monkeypatch.context() as patch:
            crash_at(number, cut, patch)
            try:
                inbox = opened(layout, growth=0)
                for step in STEPS:
                    do(inbox, step)
                    acknowledged += 1
            except Crash:
                crashes += 1
        if inbox is not None:
            inbox.close()
        found = opened(layout)
        assert content(found) in right[acknowledged : acknowledged + 2]
        found.close()
        if acknowledged == len(STEPS):
            break
        number += 1
    assert crashes > 3 * len(STEPS)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_failed_write_is_an_error_and_the_next_one_succeeds(
    layout: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = opened(layout)
    inbox.add(["a:1"], ["id 1"])
    with monkeypatch.context() as patch:

        def full(*args: Any) -> Any:
            if call == "write":
                os.pwrite(args[0], b"half of a rec", journal(layout).stat().st_size)
            raise OSError(28, "No space left on device")

        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match="inbox cannot be written, No space left on device"):
            inbox.add(["b:1"], ["id 2"])
    assert not inbox.is_open
    assert "b:1" not in inbox.pending and not inbox.knows("id 2")
    inbox.add(["c:1"])
    assert inbox.is_open
    inbox.close()
    assert set(opened(layout).pending) == {"a:1", "c:1"}


def test_only_the_last_events_are_remembered(layout: Path) -> None:
    inbox = opened(layout, remembered=3)
    for number in range(5):
        inbox.add(["a:1"], [f"id {number}"])
    assert [inbox.knows(f"id {number}") for number in range(5)] == [False, False, True, True, True]


def test_the_journal_does_not_grow_with_the_number_of_pushes(layout: Path) -> None:
    inbox = opened(layout, growth=2000, remembered=10)
    for number in range(200):
        inbox.add(["a:1", "b:1"], [f"id {number}"])
        inbox.done({"a:1": number + 1})
    assert journal(layout).stat().st_size < 4000
    inbox.close()
    assert opened(layout).pending == {"b:1": 200}


def test_a_second_process_cannot_open_it(layout: Path) -> None:
    inbox = opened(layout)
    child = os.fork()
    if child == 0:  # POSIX locks are not inherited
        try:
            opened(layout)
        except CatalogError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    inbox.close()
