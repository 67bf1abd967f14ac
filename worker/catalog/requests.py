"""From a policy of the catalog file to the request of a flow."""

from __future__ import annotations

from pathlib import Path

from layerfarm.jobs.flows.base import name_of_work
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import (
    AnalyzeRequest,
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
    TransformRequest,
)
from layerfarm.worker.catalog.document import Keep, Rebase, Rechunk, Recompress, Squash, Strip, Transform

NEW: str = "new/"
"""Before the names of new images that stay in the catalog's own store, where the old ones have them."""


def target_of(store: Path, destination: str | None, name: str) -> ImageRef:
    """Where the new image ``name`` goes: the destination's layout, else the catalog's store."""
    if destination is not None:
        return ImageRef(store=Path(destination), tag=name)
    return ImageRef(store=store, tag=f"{NEW}{name}")


def request_for(policy: Transform, image: ImageRef, target: ImageRef, plan: str | None) -> TransformRequest | None:
    """What the policy asks of one image; None: that it stays as it is. ``plan`` is the digest of the joint one."""
    fields = policy.model_dump(mode="json", exclude={"transform"}) | {"image": image, "target": target}
    match policy:
        case Keep():
            return None
        case Recompress():
            return RecompressRequest.model_validate(fields)
        case Rebase():
            bases = {name: ImageRef.parse(fields[name]) for name in ("old_base", "new_base")}
            return RebaseRequest.model_validate(fields | bases)
        case Squash():
            return SquashRequest.model_validate(fields)
        case Strip():
            return StripRequest.model_validate(fields)
        case Rechunk():
            return RechunkRequest.model_validate(fields | {"plan": plan})


def analysis_for(policy: Rechunk, image: ImageRef) -> AnalyzeRequest:
    """How the image is to be taken apart."""
    fields = policy.model_dump(mode="json", include={"keep", "source_date_epoch", "components"})
    return AnalyzeRequest.model_validate(fields | {"image": image})


def fingerprint(old: str, policy: Transform, target: ImageRef, *more: str) -> str:
    """A digest of all that the new image follows from: when it is the same, nothing is to be done."""
    return name_of_work("catalog", old, policy.model_dump(mode="json"), str(target), *more)
