"""The images of a joint plan, each platform of an index one, with no more of it than a plan and a report need.

A catalog of ten thousand images has three million components in memory: equal ones are one object, and of manifests and
configurations only sizes and digests are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from layerfarm.jobs.image import ImageConfig, Resolved
from layerfarm.jobs.relayer.analysis import Analysis, AnalysisOptions, kept_analysis
from layerfarm.jobs.relayer.components import Rule
from layerfarm.jobs.relayer.configs import rechunked_config
from layerfarm.jobs.relayer.indexes import follow, is_for_linux, platform_of
from layerfarm.jobs.relayer.rechunk import LayerToBe
from layerfarm.jobs.store import Layout, encode_document
from layerfarm.worker.catalog.costs import Pullable, pullable
from layerfarm.worker.catalog.policies import Rechunk
from layerfarm.worker.catalog.sources import CatalogImage
from layerfarm.worker.catalog.state import States

_NO_DIGEST: Final = f"sha256:{'0' * 64}"


class ConfigSize(NamedTuple):
    """The bytes of a rechunked image's configuration, by the names of its new layers.

    Only the diff_ids are unknown, and their length is fixed.
    """

    none: int
    """Without new layers."""
    first: int
    """Added by the first one, without its name."""
    other: int
    """Added by each other one."""
    has_names: bool
    """False: there is no history, which names the layers."""

    @classmethod
    def of(cls, config: ImageConfig, keep: int, old: str, epoch: int | None) -> ConfigSize:
        """Measure the configuration; the parameters are those of :func:`rechunked_config`."""

        def size(*names: str) -> int:
            new = rechunked_config(config, keep, names, [_NO_DIGEST] * len(names), old, epoch)
            return len(encode_document(new))

        none, one, two = size(), size("n"), size("n", "n")
        has_names = size("nn") > one
        return cls(none, one - none - has_names, two - one - has_names, has_names)

    def bytes(self, names: Sequence[str]) -> int:
        """Return the size with these layers."""
        if not names:
            return self.none
        named = sum(len(json.dumps(name, ensure_ascii=False).encode()) - 2 for name in names) if self.has_names else 0
        return self.none + self.first + self.other * (len(names) - 1) + named


@dataclass(frozen=True)
class Member:
    """One image of the plan: one platform of an index."""

    name: str
    """Name of its image in the catalog."""
    platform: str
    original: Pullable
    config: ConfigSize
    analysis: Analysis
    policy: Rechunk

    def predicted(self, layers: Sequence[LayerToBe]) -> Pullable:
        """Return its kept layers, those planned above them, and its future configuration."""
        kept = self.original.layers[: self.analysis.keep]
        blobs = {digest: self.original.blobs[digest] for digest in kept}
        blobs |= {layer.digest: layer.packed for layer in layers}
        blobs[f"config for {self.analysis.image}"] = self.config.bytes([layer.name for layer in layers])
        return Pullable((*kept, *(layer.digest for layer in layers)), blobs)


def options_of(policy: Rechunk) -> AnalysisOptions:
    """Return the analysis options of a policy."""
    rules = tuple(Rule(rule.name, rule.paths) for rule in policy.components)
    return AnalysisOptions(policy.keep, policy.source_date_epoch, rules)


def members_of(
    store: Layout, states: States, images: Iterable[CatalogImage]
) -> tuple[list[Member], list[CatalogImage]]:
    """Return the analyzed images to rechunk, and those not analyzed. Only platforms of Linux are planned."""
    known: list[Member] = []
    same: dict[Any, Any] = {}
    unknown: list[CatalogImage] = []
    for image in images:
        policy, old = image.policy.do, states[image.name].old
        if not isinstance(policy, Rechunk) or old is None:
            continue
        options = options_of(policy)
        of_linux = filter(is_for_linux, follow(store, old).images)
        found = [(each, kept_analysis(store, each.descriptor.digest, options)) for each in of_linux]
        members = [_member(image.name, each, kept, policy, same) for each, kept in found if kept is not None]
        if len(members) == len(found):
            known += members
        else:
            unknown.append(image)
    return known, unknown


def _member(name: str, image: Resolved, analysis: Analysis, policy: Rechunk, same: dict[Any, Any]) -> Member:
    """Return one image of the plan; ``same``: parts and files known so far, of which equal ones become one object."""
    shared = {
        "parts": tuple(same.setdefault(part, part) for part in analysis.parts),
        "large": tuple(same.setdefault(file, file) for file in analysis.large),
    }
    return Member(
        name,
        platform_of(image),
        pullable(image.manifest.layers, image.manifest.config),
        ConfigSize.of(image.config, analysis.keep, image.descriptor.digest, policy.source_date_epoch),
        analysis.model_copy(update=shared),
        policy,
    )
