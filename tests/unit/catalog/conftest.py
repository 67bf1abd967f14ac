"""A server in the place of a registry, without the settings of this machine for proxies and credentials."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.catalog.http_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        yield running
