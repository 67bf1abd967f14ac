"""Read the manifests of registries, each once: what is known by its digest is not asked for again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from layerfarm.jobs.errors import NotInRegistry
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import read_result, write_result
from layerfarm.worker.catalog.registry import Skopeo, digest_of

_KIND: Final = "manifest"


class Known:
    """Manifests of registries. They are kept beside a store as results that garbage collection may remove."""

    def __init__(self, skopeo: Skopeo, store: Layout) -> None:
        self._skopeo = skopeo
        self._store = store

    def raw_manifest(self, reference: str) -> bytes:
        """As :meth:`Skopeo.raw_manifest`; a known one costs a HEAD request, and nothing if asked for by digest."""
        _, at, digest = reference.partition("@")
        if at:
            return self._read(digest, lambda: self._skopeo.raw_manifest(reference))
        try:
            named = self._skopeo.head(reference)
        except NotInRegistry:
            # Some registries that proxy others know only what was pulled.
            named = None
        return self._read(named, lambda: self._skopeo.raw_manifest(reference))

    def _read(self, digest: str | None, ask: Callable[[], bytes]) -> bytes:
        if digest is not None:
            kept = read_result(self._store, _KIND, digest.replace(":", "-"))
            if kept is not None and digest_of(kept) == digest:
                return kept
        raw = ask()
        write_result(self._store, _KIND, digest_of(raw).replace(":", "-"), raw)
        return raw
