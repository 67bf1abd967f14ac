"""When a process in the sandbox has to make room for another."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from layerfarm.jobs.store.result_cache import user_cache
from layerfarm.worker.engine import tasks
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.security import sandbox
from layerfarm.worker.security.sandbox import Sandbox
from layerfarm.worker.settings import Settings, load_settings


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_text("old")
    return path


def entered(certificate: Path, confined: bool, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Entered as far as this process can be without being confined for the rest of the tests."""
    monkeypatch.setattr("layerfarm.worker.security.sandbox.privileges.give_up", lambda user: None)
    monkeypatch.setattr("layerfarm.worker.security.sandbox.landlock.restrict", lambda *rules: None)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/put/back/at/the/end")
    place = Sandbox(load_settings(farm=f"rediss://localhost?ssl_ca_certs={certificate}"), certificate.parent, confined)
    place.enter()
    return place


def replace(path: Path) -> None:
    """As cert-manager and DHCP do: the name leads to another file."""
    new = path.with_name("new")
    new.write_text("new")
    new.rename(path)


def test_file_that_was_replaced_is_one_that_landlock_does_not_know(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = entered(certificate, True, monkeypatch)
    assert not place.is_outdated()
    certificate.write_text("written in place")
    assert not place.is_outdated()
    replace(certificate)
    assert place.is_outdated()


@pytest.mark.parametrize("name", ["hosts", "resolv.conf", "nsswitch.conf", "localtime"])
def test_replaced_file_of_etc_is_noticed(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / name).write_text("old")
    # A name that is an absolute path is not one in /etc.
    monkeypatch.setattr(sandbox, "_NAMES", tuple(str(etc / name) for name in sandbox._NAMES))
    place = entered(certificate, True, monkeypatch)
    assert not place.is_outdated()
    replace(etc / name)
    assert place.is_outdated()


@pytest.mark.parametrize("outdated", [True, False])
def test_process_with_an_outdated_sandbox_ends_before_its_next_task(
    monkeypatch: pytest.MonkeyPatch, outdated: bool
) -> None:
    done: list[object] = []

    def leave(status: int) -> None:
        done.append(status)
        raise SystemExit(status)

    class Runner:
        def do(self, item: Item) -> None:
            done.append(item)

    def never() -> bool:
        return False

    monkeypatch.setattr("os._exit", leave)
    process = tasks.Process(Celery(set_as_current=False), Settings(), never, never, None, lambda: outdated)
    process.__dict__["_runner"] = Runner()
    with suppress(SystemExit):
        process.do("unit", {"job": "job", "attempt": 1, "stage": 0, "index": 0})
    assert done == ([1] if outdated else [Item("job", 1, "unit", 0, 0)])


def test_process_that_is_not_confined_reads_the_new_file(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = entered(certificate, False, monkeypatch)
    replace(certificate)
    assert not place.is_outdated()


@pytest.mark.parametrize("confined", [True, False])
def test_trees_are_cached_in_the_directory_of_the_worker(
    certificate: Path, confined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = entered(certificate, confined, monkeypatch)
    assert user_cache().path == place.temporary / "layerfarm"
