"""The operator's own components, which come before all others."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence

from layerfarm.jobs.relayer.components.imagetree import ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, Rule


def claims(tree: ImageTree, rules: Sequence[Rule]) -> Iterator[Claim]:
    """Of each rule in turn the paths that match it."""
    for rule in rules:
        translated = (fnmatch.translate(pattern.removeprefix("/")) for pattern in rule.patterns)
        matches = re.compile("|".join(translated)).match
        paths = [path for path in tree.entries if matches(os.fsdecode(path)) is not None]
        yield Claim(Component("rule", rule.name), paths)
