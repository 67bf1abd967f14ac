"""Values of a catalog file: ranges of versions, ages, sizes."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

_COMPARISON: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|=)\s*([^\s,<>=!]+)\s*,?")
_AGE: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_AGE_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,6})\s?(kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_SIZE_UNITS: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


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
    return timedelta(**{_AGE_UNITS[found[2]]: int(found[1])})


def parse_size(text: str) -> int:
    """Parse a whole number of kB, MB, GB, TB, KiB, MiB, GiB or TiB; return bytes. Raises ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a size, such as 10GB or 512MiB")
    return int(found[1]) * _SIZE_UNITS[found[2]]
