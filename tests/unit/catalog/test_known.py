"""Manifests of registries are read once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from layerfarm.jobs.errors import NotInRegistry
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import result_path
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.registry import Skopeo, digest_of

ONE, TWO = b'{"one": 1}', b'{"two": 2}'


class Registry:
    """Has one manifest, behind the tag ``1``, and counts what it is asked."""

    def __init__(self) -> None:
        self.content = ONE
        self.asked: list[str] = []
        self.plain = True

    def head(self, reference: str) -> str | None:
        self.asked.append("HEAD")
        return digest_of(self.content) if self.plain else None

    def raw_manifest(self, reference: str) -> bytes:
        self.asked.append("GET")
        return self.content


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def known(registry: Registry, tmp_path: Path) -> Known:
    return Known(cast(Skopeo, registry), Layout.create(tmp_path / "store"))


def asked(registry: Registry, known: Known, reference: str = "docker://h/a:1") -> list[str]:
    """Return the requests of one more reading."""
    registry.asked.clear()
    assert known.raw_manifest(reference) == registry.content
    return registry.asked


def test_a_tag_costs_a_head_and_a_digest_nothing(registry: Registry, known: Known) -> None:
    assert asked(registry, known) == ["HEAD", "GET"]
    assert asked(registry, known) == ["HEAD"]
    assert asked(registry, known, f"docker://h/a@{digest_of(ONE)}") == []
    registry.content = TWO
    assert asked(registry, known) == ["HEAD", "GET"]
    registry.content = ONE
    assert asked(registry, known) == ["HEAD"]


def test_without_a_plain_answer_the_manifest_is_read(registry: Registry, known: Known) -> None:
    registry.plain = False
    assert asked(registry, known) == ["HEAD", "GET"]
    assert asked(registry, known) == ["HEAD", "GET"]


def test_a_tag_that_head_does_not_find_is_asked_for_once_more(
    registry: Registry, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(reference: str) -> str:
        raise NotInRegistry("not found")

    monkeypatch.setattr(registry, "head", not_found)
    assert asked(registry, known) == ["GET"]


def test_what_is_kept_is_believed_only_with_its_digest(registry: Registry, known: Known, tmp_path: Path) -> None:
    asked(registry, known)
    path = result_path(Layout.open(tmp_path / "store"), "manifest", digest_of(ONE).replace(":", "-"))
    path.write_bytes(TWO)
    assert asked(registry, known) == ["HEAD", "GET"]
    assert asked(registry, known) == ["HEAD"]
