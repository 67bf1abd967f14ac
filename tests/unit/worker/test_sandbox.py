"""When a process in the sandbox has to make room for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.store.result_cache import user_cache
from layerfarm.worker.security.sandbox import Sandbox
from layerfarm.worker.settings import load_settings


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
