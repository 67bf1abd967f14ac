"""Remove images that left the catalog, at the destination and in the store; never what others have put there.

Registries delete by digest: a manifest goes with all tags that name it, and an index that names it breaks. So an image
is removed from a registry only if no other tag of its repository leads to its manifest.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerfarm.jobs.errors import CatalogError, LayerfarmError, NotInRegistry
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import DOCKER
from layerfarm.worker.catalog.known import Known
from layerfarm.worker.catalog.offers import look
from layerfarm.worker.catalog.places import place_of, repository_in
from layerfarm.worker.catalog.state import ImageState, Missed, Publication

if TYPE_CHECKING:
    from layerfarm.worker.catalog.work import Work


@dataclass(frozen=True)
class Removal:
    """A tag to remove."""

    image: str
    """Name of the image in the catalog."""
    place: str
    """``docker://HOST/REPOSITORY:TAG`` or ``LAYOUT:TAG``."""
    digest: str


@dataclass(frozen=True)
class Pruning:
    """Result of a look at the sources, the destination and the store."""

    removals: Sequence[Removal]
    kept: Sequence[tuple[str, str]]
    """Places that are not touched, although their images left the catalog, with the reason."""
    absent: Sequence[Removal]
    """Places from which others have removed the image already."""
    missed: Sequence[Missed]
    """Sources that cannot be listed; their images stay."""
    percent: float
    """Percentage of all images that would lose a tag."""
    present: frozenset[str]
    """Names of the images in the catalog."""


def find_removals(work: Work) -> Pruning:
    """List the sources, and find what is left of images that they no longer have. Changes nothing.

    Raises:
        LayerfarmError: as :meth:`Work.discover`.
    """
    found = work.discover()
    present = {image.name for image in found.images}
    current = {str(work.target(image)) for image in found.images}
    current |= {place for name in present if (place := place_of(work.catalog.destination, name)) is not None}
    states = [*work.states.all(), *work.states.gone()]
    judged = _Judged([], [], [])
    by_repository: defaultdict[str, list[Removal]] = defaultdict(list)
    for state in states:
        remains = [removal for removal in _remains(work, state, present) if removal.place not in current]
        if remains and work.states.others_have(state.name):
            judged.kept += [(removal.place, "another catalog of this store has the image") for removal in remains]
            continue
        for removal in remains:
            if removal.place.startswith(DOCKER):
                by_repository[repository_in(removal.place)].append(removal)
            else:
                judged.in_layout(removal)
    published = {pub.place: pub for state in states for pub in state.published}
    reader = Known(work.publisher, work.store)
    for repository, removals in sorted(by_repository.items()):
        try:
            _Repository(work, reader, repository).judge(removals, published, judged)
        except LayerfarmError as error:
            judged.kept += [(removal.place, f"its repository cannot be read, {error}") for removal in removals]
    names = {state.name for state in states if state.published or state.old is not None}
    percent = 100 * len({removal.image for removal in judged.removals}) / max(len(names), 1)
    return Pruning(judged.removals, judged.kept, judged.absent, found.missed, percent, frozenset(present))


def _remains(work: Work, state: ImageState, present: Collection[str]) -> Iterator[Removal]:
    """Yield all places of an image; if it left the catalog, its copy in the store too, unless it comes from there."""
    for publication in state.published:
        yield Removal(state.name, publication.place, publication.digest)
    original = _original(work, state.name)
    is_source = not state.origin.startswith(DOCKER) and os.path.realpath(_split(state.origin)[0]) == os.path.realpath(
        work.store.path
    )
    if state.name not in present and state.old is not None and not is_source:
        yield Removal(state.name, original, state.old.digest)


def _original(work: Work, name: str) -> str:
    """Return the place of the fetched image."""
    return str(work.store.path) + ":" + name


@dataclass
class _Judged:
    removals: list[Removal]
    kept: list[tuple[str, str]]
    absent: list[Removal]

    def in_layout(self, removal: Removal) -> None:
        path, tag = _split(removal.place)
        named = {entry.digest for entry in Layout.open(path).find(tag)} if path.exists() else set()
        self._add(removal, named)

    def _add(self, removal: Removal, there: set[str]) -> None:
        if not there:
            self.absent.append(removal)
        elif there != {removal.digest}:
            self.kept.append((removal.place, f"others have put {', '.join(sorted(there))} there"))
        else:
            self.removals.append(removal)


class _Repository:
    """One repository at the destination."""

    def __init__(self, work: Work, reader: Known, repository: str) -> None:
        self._repository = repository
        try:
            tags = work.publisher.tags(repository)
        except NotInRegistry:
            tags = []

        def read(tag: str) -> list[str]:
            return look(reader, f"{repository}:{tag}").digests

        with ThreadPoolExecutor(work.catalog.access.parallel, thread_name_prefix="prune") as pool:
            self._digests: Mapping[str, list[str]] = dict(zip(tags, pool.map(read, tags), strict=True))
        """By tag: the manifest that it names, and all that this leads to."""

    def judge(self, removals: Sequence[Removal], published: Mapping[str, Publication], judged: _Judged) -> None:
        ours = {removal.place.removeprefix(f"{self._repository}:"): removal for removal in removals}
        leaving: dict[str, str] = {}
        for tag, removal in ours.items():
            digests = self._digests.get(tag)
            if digests is None:
                judged.absent.append(removal)
            elif digests[0] != removal.digest:
                judged.kept.append((removal.place, f"others have put {digests[0]} there"))
            else:
                leaving[tag] = tag
                for beside, digest in published[removal.place].beside.items():
                    if self._digests.get(beside, [""])[0] == digest:
                        leaving[beside] = tag
        while needed := self._needed(leaving):
            for tag, other in needed.items():
                judged.kept += [(ours[tag].place, f"the tag {other} needs its manifest")] if tag in ours else []
                leaving = {each: of for each, of in leaving.items() if each != tag and of != tag}
        for tag, of in leaving.items():
            place = f"{self._repository}:{tag}"
            judged.removals.append(Removal(ours[of].image, place, self._digests[tag][0]))

    def _needed(self, leaving: Mapping[str, str]) -> dict[str, str]:
        """Return the tags whose manifests other tags lead to, or whose subjects stay; and one such tag for each."""
        stay = {digest: tag for tag, digests in self._digests.items() if tag not in leaving for digest in digests}
        needed: dict[str, str] = {}
        for tag in leaving:
            subject = tag.partition(".")[0].replace("-", ":", 1)
            for digest in (self._digests[tag][0], *([subject] if leaving[tag] != tag else [])):
                if digest in stay:
                    needed[tag] = stay[digest]
        return needed


# --- carrying out ---------------------------------------------------------------------------------


def prune(work: Work, pruning: Pruning, at_most: float) -> list[tuple[str, str]]:
    """Remove what was found; return the places that could not be removed, with the reason.

    Raises:
        CatalogError: more than ``at_most`` percent of the images would lose a tag; nothing is removed.
    """
    if pruning.percent > at_most:
        raise CatalogError(
            f"{pruning.percent:.0f} % of the images would be removed, more than {at_most:g} %; nothing was removed",
            where=work.name,
            hint="if this is intended, allow it with --at-most",
        )
    failed: list[tuple[str, str]] = []
    removed = list(pruning.absent)
    work.view.step("prune", len(pruning.removals))
    for removal in pruning.removals:
        error = None
        try:
            _remove(work, removal)
            removed.append(removal)
        except LayerfarmError as caught:
            error = str(caught)
            failed.append((removal.place, error))
        work.view.ended(removal.place, error)
    _forget(work, removed, pruning.present)
    return failed


def _remove(work: Work, removal: Removal) -> None:
    if not removal.place.startswith(DOCKER):
        path, tag = _split(removal.place)
        Layout.open(path).untag(tag)
        return
    try:
        work.publisher.delete(f"{repository_in(removal.place)}@{removal.digest}")
    except NotInRegistry:
        return  # with another tag of the same image


def _forget(work: Work, removed: Iterable[Removal], present: Collection[str]) -> None:
    """Remove the records of what is no longer there."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for removal in removed:
        places[removal.image].add(removal.place)
    for name, gone in places.items():
        state = work.states[name]
        left = tuple(one for one in state.published if one.place not in gone)
        if name in present:
            work.states.put(state.but(published=left))
            continue
        old = None if _original(work, name) in gone else state.old
        if left or old is not None:
            work.states.put(state.but(published=left, old=old, gone=True))
        else:
            work.states.remove(name)


def _split(place: str) -> tuple[Path, str]:
    """Return the path and tag of ``LAYOUT:TAG``."""
    path, _, tag = place.partition(":")
    return Path(path), tag
