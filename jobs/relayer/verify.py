"""Proofs checked again, on the images as they lie in the store now."""

from __future__ import annotations

from functools import cached_property

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image import Resolved, resolve_walk
from layerfarm.jobs.image.layers import Advanced, open_layer, unheard
from layerfarm.jobs.image.trees import stack_of
from layerfarm.jobs.image.validate import Report
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.relayer.equivalence import digest_of, facts_of
from layerfarm.jobs.relayer.indexes import read_images
from layerfarm.jobs.relayer.proof import Proof, compare, proofs_of
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Descriptor, Layout


def verify_image(layout: Layout, tag: str, advanced: Advanced = unheard) -> Report:
    """Check every proof of every image behind ``tag``, all layers read again.

    Of the old image only what the proof says is known if the store does not hold it any more; the proof's
    digests are compared then. ``report.reachable`` counts the proofs, ``reachable_bytes`` the layers read.

    Raises:
        StoreError: the tag leads to no image.
    """
    report = Report()
    for image in read_images(layout, tag).images:
        _Verifier(layout, image, report, advanced).check()
    return report


class _Verifier:
    """One image and its proofs."""

    def __init__(self, layout: Layout, image: Resolved, report: Report, advanced: Advanced) -> None:
        self._layout = layout
        self._image = image
        self._digest = image.descriptor.digest
        self._report = report
        self._advanced = advanced

    def check(self) -> None:
        try:
            proofs = proofs_of(self._layout, self._digest)
        except LayerfarmError as error:
            self._report.error("proof", error.where or self._digest, error)
            return
        if not proofs:
            self._report.warning("no-proof", self._digest, "the image has no proof of what it was made of")
        for proof in proofs:
            self._report.reachable += 1
            try:
                self._check_new(proof)
                self._check_old(proof)
            except LayerfarmError as error:
                self._report.error("not-equal", error.where or self._digest, error)

    @cached_property
    def _stack(self) -> Stack:
        return stack_of(self._layout, self._image, self._read)

    def _read(self, nbytes: int) -> None:
        self._report.reachable_bytes += nbytes
        self._advanced(nbytes)

    def _check_new(self, proof: Proof) -> None:
        """That the image is still the one that was proved."""
        if proof.new.digest != self._digest:
            self._report.error("proof", self._digest, f"the proof is of another image, {proof.new.digest}")
        elif proof.method == "layers":
            if proof.diff_ids != self._image.config.rootfs.diff_ids:
                self._report.error("not-equal", self._digest, "the proof names other layers than the image has")
            for layer, diff_id in self._image.layers:
                if not layer.urls or self._layout.has(layer):
                    with open_layer(self._layout, layer, diff_id, self._read):
                        pass
        elif digest_of(facts_of(self._stack)) != (proof.tree, proof.entries):
            self._report.error("not-equal", self._digest, "the image's tree is not the one that was proved")

    def _check_old(self, proof: Proof) -> None:
        """That it is still what was made of the old image, if that is there."""
        found = Descriptor(mediaType=MEDIA_TYPE_MANIFEST, digest=proof.old.digest, size=proof.old.size)
        if not self._layout.has(found):
            self._report.warning(
                "old-image", proof.old.digest, "not in the store any more: only recorded digests checked"
            )
            return
        old = resolve_walk(self._layout, (found,))
        ids, new_ids = old.config.rootfs.diff_ids, self._image.config.rootfs.diff_ids
        if proof.method == "tree":
            compare(stack_of(self._layout, old, self._read), self._stack, proof.allowed.allowed(), self._digest)
        elif proof.swapped is None and ids != new_ids:
            self._report.error("not-equal", self._digest, f"its layers are not those of {proof.old.digest}")
        elif proof.swapped is not None:
            above = ids[proof.swapped.layers :]
            if new_ids[len(new_ids) - len(above) :] != above:
                self._report.error("not-equal", self._digest, f"its upper layers are not those of {proof.old.digest}")
