"""The outcome of the last run for each image, and what to do about failures."""

from __future__ import annotations

from typing import Final, Literal

from layerfarm.worker.catalog.state import ImageState, LastRun, Step

Outcome = Literal["made", "kept", "repaired", "published", "unchanged", "skipped", "failed", "planned", "pending"]
MEANING: dict[Outcome, str] = {
    "made": "transformed, and verified to hold the same files",
    "kept": "published as it was fetched, because the policy or the plan does not change it",
    "repaired": "pushed again, because the destination no longer had it",
    "published": "made by an earlier run, and pushed now",
    "unchanged": "finished by an earlier run; nothing to do",
    "skipped": "not an image that the policy applies to",
    "failed": "see below; the next run tries it again",
    "planned": "made by the next run as predicted",
    "pending": "not reached: the run was interrupted",
}
"""In the order in which a report lists them."""


ABOUT_SOURCES: Final = "Correct the source in the catalog file, or its credentials, then run again."
"""Advice about a source that could not be listed."""


def outcome_of(state: ImageState, last: LastRun, *, made: bool) -> Outcome:
    """Return what the last run did with an image; ``made``: its new image exists."""
    acts = state.acts if state.run == last.began else ()
    if state.error is not None:
        return "failed"
    if state.note is not None and state.old is None:
        return "skipped"
    if not made:
        return "planned" if last.kind == "plan" else "pending"
    if "made" in acts:
        return "made"
    if "copied" in acts:
        return "kept"
    if "repaired" in acts:
        return "repaired"
    return "published" if "pushed" in acts else "unchanged"


def advice(step: Step | None, name: str, origin: str) -> str:
    """Return what to do about an image that failed in a step."""
    match step:
        case "fetch":
            return f"Check that {origin or 'the source'} can be read with these credentials, then run again."
        case "push":
            return "The image is made. Check the destination and its credentials; the next run pushes it."
        case "analyze" | "transform":
            return f"Correct the image or its policy, then run again. The policy keep publishes {name} unchanged."
        case None:
            return "Run again."
