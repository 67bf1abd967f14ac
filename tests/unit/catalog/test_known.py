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

    def raw_config(self, reference: str, digest: str) -> bytes:
        self.asked.append("GET of a configuration")
        return TWO


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def asked(registry: Registry, store: Layout, reference: str = "docker://h/a:1") -> list[str]:
    """Return the requests of one more run, which reads the reference twice."""
    registry.asked.clear()
    known = Known(cast(Skopeo, registry), store)
    for _ in range(2):
        assert known.raw_manifest(reference) == registry.content
    return registry.asked


def test_a_tag_costs_a_head_and_a_digest_nothing(registry: Registry, store: Layout) -> None:
    assert asked(registry, store) == ["HEAD", "GET"]
    assert asked(registry, store) == ["HEAD"]
    assert asked(registry, store, f"docker://h/a@{digest_of(ONE)}") == []
    registry.content = TWO
    assert asked(registry, store) == ["HEAD", "GET"]
    registry.content = ONE
    assert asked(registry, store) == ["HEAD"]


def test_without_a_plain_answer_the_manifest_is_read(registry: Registry, store: Layout) -> None:
    registry.plain = False
    assert asked(registry, store) == ["HEAD", "GET"]
    assert asked(registry, store) == ["HEAD", "GET"]


def test_a_tag_that_head_does_not_find_is_asked_for_once_more(
    registry: Registry, store: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(reference: str) -> str:
        raise NotInRegistry("not found")

    monkeypatch.setattr(registry, "head", not_found)
    assert asked(registry, store) == ["GET"]


def test_a_configuration_is_read_once(registry: Registry, store: Layout) -> None:
    for _ in range(2):
        known = Known(cast(Skopeo, registry), store)
        assert known.raw_config(f"docker://h/a@{digest_of(ONE)}", digest_of(TWO)) == TWO
    assert registry.asked == ["GET of a configuration"]


def test_cached_documents_are_used_only_if_their_digest_matches(
    registry: Registry, store: Layout, tmp_path: Path
) -> None:
    asked(registry, store)
    path = result_path(Layout.open(tmp_path / "store"), "manifest", digest_of(ONE).replace(":", "-"))
    path.write_bytes(TWO)
    assert asked(registry, store) == ["HEAD", "GET"]
    assert asked(registry, store) == ["HEAD"]
