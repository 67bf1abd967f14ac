"""Read the manifests and configurations of registries, each once: a known digest is not requested again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from layerfarm.jobs.errors import NotInRegistry
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.result_cache import read_result, write_result
from layerfarm.worker.catalog.registry import Skopeo, digest_of

_KIND: Final = "manifest"
"""Kind of the results, also of those that are configurations: their names are digests."""


class Known:
    """Manifests of registries, stored beside a store as results that garbage collection may remove.

    One object is for one look at the sources: what a tag names is asked once.
    """

    def __init__(self, skopeo: Skopeo, store: Layout) -> None:
        self._skopeo = skopeo
        self._store = store
        self._named: dict[str, str] = {}

    def raw_manifest(self, reference: str) -> bytes:
        """Do as :meth:`Skopeo.raw_manifest`; a known tag costs a HEAD request, a known digest nothing."""
        _, at, digest = reference.partition("@")
        if at:
            return self._read(digest, lambda: self._skopeo.raw_manifest(reference))
        named = self._named.get(reference)
        if named is None:
            try:
                named = self._skopeo.head(reference)
            except NotInRegistry:
                # Some proxying registries know only what was pulled through them.
                named = None
        raw = self._read(named, lambda: self._skopeo.raw_manifest(reference))
        self._named[reference] = digest_of(raw)
        return raw

    def raw_config(self, reference: str, digest: str) -> bytes:
        """Do as :meth:`Skopeo.raw_config`; a known digest costs nothing."""
        return self._read(digest, lambda: self._skopeo.raw_config(reference, digest))

    def _read(self, digest: str | None, ask: Callable[[], bytes]) -> bytes:
        if digest is not None:
            kept = read_result(self._store, _KIND, digest.replace(":", "-"))
            if kept is not None and digest_of(kept) == digest:
                return kept
        raw = ask()
        write_result(self._store, _KIND, digest_of(raw).replace(":", "-"), raw)
        return raw
