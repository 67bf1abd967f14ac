"""Bring new images to a registry, with their proofs and all else that speaks of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from layerfarm.jobs.errors import LayerfarmError, NotInRegistry
from layerfarm.jobs.relayer.indexes import follow
from layerfarm.jobs.relayer.referrers import fallback_index, fallback_tag, referrers, tags_beside
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Layout
from layerfarm.worker.catalog.pull import named, push, reachable_blobs
from layerfarm.worker.catalog.registry import Skopeo
from layerfarm.worker.catalog.remote_referrers import bring, referred
from layerfarm.worker.catalog.state import ImageState


def is_to_push(state: ImageState, registry: str) -> bool:
    """True if the new image, or what speaks of it, is not in the registry as it is now."""
    return state.error is None and state.new is not None and state.pushed != _pushed(state, registry)


class Pusher:
    """Pushes images to ``docker://HOST/PREFIX``; ``notice`` is told what is left out."""

    def __init__(self, skopeo: Skopeo, registry: str, notice: Callable[[str], None]) -> None:
        self._skopeo = skopeo
        self._registry = registry
        self._notice = notice

    def push(self, state: ImageState, layout: Layout) -> tuple[ImageState, int]:
        """Push the new image of ``layout``; its state then, with an error if it could not be, and its bytes."""
        assert state.new is not None
        reference = _reference(self._registry, state.name)
        # A name from a layout may have no tag; the colon before the port is none.
        repository = _reference(self._registry, state.name.partition(":")[0])
        try:
            push(self._skopeo, layout, state.new, reference)
            subjects = [each.digest for each in follow(layout, state.new).manifests]
            for subject in subjects:
                self._push_tags(layout, repository, subject)
                # What speaks of a referrer: a signature on an SBOM.
                subjects += [each for each in self._push_referrers(layout, repository, subject) if each not in subjects]
            nbytes = sum(blob.size for blob in reachable_blobs(layout, state.new))
        except LayerfarmError as error:
            return state.but(error=str(error)), 0
        return state.but(pushed=_pushed(state, self._registry)), nbytes

    def _push_referrers(self, layout: Layout, repository: str, subject: str) -> list[str]:
        """The proofs, and what else refers to the image, behind the tag at which registries without the referrers API
        are asked for them; returns their digests. What others have put there stays there."""
        ours = {each.digest for each in referrers(layout, subject)}
        if not ours:
            return []
        others = [one for one in referred(self._skopeo, repository, subject) if one.digest not in ours]
        for text in bring(self._skopeo, repository, others, [subject], layout):
            self._notice(f"{repository}: {text}")
        index = fallback_index(layout, subject)
        assert index is not None
        stored = layout.put_document(index, MEDIA_TYPE_INDEX)
        # An index whose digest nobody knows; older skopeos drop what they do not know of it.
        push(self._skopeo, layout, stored, f"{repository}:{fallback_tag(subject)}", exact=False)
        return [entry.digest for entry in index.manifests]

    def _push_tags(self, layout: Layout, repository: str, subject: str) -> None:
        """Signatures and SBOMs of cosign, where there are none yet."""
        for tag in tags_beside(sorted(layout.tags()), subject):
            reference, ours = f"{repository}:{tag}", named(layout, tag)
            try:
                there = self._skopeo.raw_manifest(reference)
            except NotInRegistry:
                push(self._skopeo, layout, ours, reference)
            else:
                if hashlib.sha256(there).hexdigest() != ours.digest.partition(":")[2]:
                    self._notice(f"there is another one already, which stays: {reference}")


def _reference(registry: str, name: str) -> str:
    return f"{registry.rstrip('/')}/{name}"


def _pushed(state: ImageState, registry: str) -> str:
    """Of what was pushed where: the image, and what it and all that speaks of it follow from."""
    assert state.new is not None
    return f"{state.new.digest} {_reference(registry, state.name)} {state.work}"
