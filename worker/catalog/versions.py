"""Ranges of versions and of time, by which a source selects tags."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

_COMPARISON: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|=)\s*([^\s,<>=!]+)\s*,?")
_AGE: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


class VersionRange:
    """Comparisons that a version must all pass, such as ``>=1.2 <2``; ``||`` separates alternatives.

    Versions are those of PEP 440, as the package packaging reads them: with or without ``v``, with any number of parts,
    ``1.2.3-rc.1`` before ``1.2.3``. Pre-releases are in a range only if one of its comparisons names one.
    """

    def __init__(self, text: str) -> None:
        """Raise ValueError: it is not a range."""
        self._alternatives = [_comparisons(part, text) for part in text.split("||")]

    def __contains__(self, tag: str) -> bool:
        """Return False also for a tag that is not a version."""
        try:
            version = Version(tag)
        except InvalidVersion:
            return False
        return any(each.contains(version, prereleases=bool(each.prereleases)) for each in self._alternatives)


def _comparisons(part: str, text: str) -> SpecifierSet:
    found = _COMPARISON.findall(part)
    try:
        if not found or _COMPARISON.sub("", part).strip():
            raise InvalidSpecifier
        return SpecifierSet(",".join(f"{'==' if sign == '=' else sign}{version}" for sign, version in found))
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is not a range of versions, such as '>=1.2 <2'") from None


def parse_age(text: str) -> timedelta:
    """Parse a number of hours, days or weeks: ``12h``, ``30d``, ``8w``. Raises ValueError."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not an age, such as 12h, 30d or 8w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
