"""The label in which Cloud Native Buildpacks records the layers of an image, by their diff_ids.

``pack rebase`` replaces the layers up to ``runImage.topLayer``, and ``pack build`` reuses the layers of buildpacks
(buildpacks spec, platform.md "io.buildpacks.lifecycle.metadata"). Both fail, or change the wrong layers, if the label
does not match the image.
"""

from __future__ import annotations

import json
from typing import Any, Final

from layerfarm.jobs.image import ImageConfig, Resolved

LABEL: Final = "io.buildpacks.lifecycle.metadata"


def rebased_label(label: str, old_base: Resolved, new_base: Resolved) -> tuple[str, str | None]:
    """Return the label of an image on its new base, and a warning if it does not match.

    As the lifecycle's rebaser does, ``runImage.topLayer`` becomes the topmost layer of the new base, and the digest in
    ``runImage.reference`` the new base's. Everything else stays.
    """
    try:
        metadata: Any = json.loads(label)
        run_image = metadata["runImage"]
        top = run_image["topLayer"]
        if not isinstance(top, str):
            raise TypeError
        below, above = old_base.config.rootfs.diff_ids, new_base.config.rootfs.diff_ids
        if top not in below:
            return label, None  # the run image ends above this base, in layers that stay
        if top != below[-1] or not above:
            return label, f"the run image is not the base: topLayer of the label {LABEL} is not changed"
        run_image["topLayer"] = above[-1]
        if isinstance(run_image.get("reference"), str):
            run_image["reference"] = _moved(run_image["reference"], old_base, new_base)
        text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
        return text, None
    except (ValueError, LookupError, TypeError, RecursionError, AttributeError):
        return label, f"label {LABEL} is not in the form of buildpacks, and is not changed"


def _moved(reference: str, old_base: Resolved, new_base: Resolved) -> str:
    """Return the reference with the digest of the new base: its manifest's, or its configuration's as in a daemon."""
    pairs = (
        (old_base.descriptor.digest, new_base.descriptor.digest),
        (old_base.manifest.config.digest, new_base.manifest.config.digest),
    )
    return next((reference.replace(old, new) for old, new in pairs if old in reference), reference)


def untrue_label(old: ImageConfig, new: ImageConfig) -> str | None:
    """Return a warning if the label names layers of the old image that the new one does not have; else None."""
    label = ((new.config.labels if new.config else None) or {}).get(LABEL, "")
    gone = set(old.rootfs.diff_ids).difference(new.rootfs.diff_ids)
    if not any(diff_id in label for diff_id in gone):
        return None
    return f"label {LABEL} names layers that the new image does not have: buildpacks cannot rebase or rebuild it"
