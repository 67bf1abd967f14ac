"""What dpkg knows of both bases, and whether the packages that the image added fit the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.layer.stack import Source
from layerfarm.jobs.relayer.components.dpkg import paragraphs
from layerfarm.jobs.relayer.rebase_evidence import Concern, Contents, Trees, Verdict

_DPKG: Final = b"var/lib/dpkg/status"

Fields = dict[bytes, bytes]
Installed = dict[str, Fields]
"""The paragraph of each package in dpkg's status file."""


def compare_packages(trees: Trees, contents: Contents) -> tuple[list[str], list[Concern]]:
    """The packages of the base that change, as ``name old -> new``, and what speaks against the rebase."""
    own = trees.image.look_up(_DPKG)
    try:
        before = _installed(contents.of_image, trees.old_base.look_up(_DPKG))
        after = _installed(contents.of_rebased, trees.new_base.look_up(_DPKG))
        image = _installed(contents.of_image, own)
    except LayerfarmError as error:
        return [], [Concern(Verdict.REVIEW, _DPKG, f"package database is broken: {error.what}")]
    changed = [
        f"{name} {_version(before.get(name))} -> {_version(after.get(name))}"
        for name in sorted({*before, *after})
        if _version(before.get(name)) != _version(after.get(name))
    ]
    if own is None or own.layer <= trees.below:
        return changed, []
    concerns = []
    if changed:
        what = f"lists the packages of the old base; {len(changed)} are others in the new one: {', '.join(changed[:3])}"
        concerns.append(Concern(Verdict.REVIEW, _DPKG, what + (" …" if len(changed) > 3 else "")))
    for name, fields in image.items():
        if name not in before:
            concerns += _unmet(name, fields, before, after)
    return changed, concerns


def _unmet(name: str, fields: Fields, before: Installed, after: Installed) -> Iterator[Concern]:
    """What a package that the image added wants of the base, and has no more.

    Versions are compared for exact wishes only; that a library is new enough its symbols tell better.
    """
    wishes = b", ".join(fields[key] for key in (b"Depends", b"Pre-Depends") if key in fields)
    for wish in wishes.decode("utf-8", "replace").split(","):
        needed, _, version = wish.strip().partition(" ")
        needed = needed.partition(":")[0]
        if needed not in before or "|" in wish:
            continue
        if needed not in after:
            yield Concern(Verdict.REVIEW, _DPKG, f"{name} depends on {needed}, which is not in the new base")
        elif version.startswith("(= ") and version[3:-1] != _version(after[needed]):
            what = f"{name} wants {needed} {version[3:-1]}, the new base has {_version(after[needed])}"
            yield Concern(Verdict.REVIEW, _DPKG, what)


def _installed(read: Callable[[Iterable[Source]], Iterator[tuple[Source, bytes]]], status: Source | None) -> Installed:
    content = b"".join(content for _, content in read([status])) if status is not None else b""
    return {
        fields.get(b"Package", b"").decode("utf-8", "replace"): fields
        for fields in paragraphs(content, _DPKG)
        if fields.get(b"Status", b"installed").split()[-1:] == [b"installed"]
    }


def _version(fields: Fields | None) -> str:
    return "none" if fields is None else fields.get(b"Version", b"").decode("utf-8", "replace")
