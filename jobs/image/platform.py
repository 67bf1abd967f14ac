"""Platforms in Go's words, as the image-spec wants them (image-index.md): this machine's, and which are the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from layerfarm.jobs.store import Platform

if TYPE_CHECKING:
    from layerfarm.jobs.image.documents import ImageConfig

_MACHINES = {
    "x86_64": ("amd64", None),
    "i386": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "loongarch64": ("loong64", None),
    "ppc64le": ("ppc64le", None),
    "riscv64": ("riscv64", None),
    "s390x": ("s390x", None),
}


def host_platform() -> Platform:
    """Linux on this machine's processor, the ARM variant included."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, None))
    return Platform(os="linux", architecture=architecture, variant=variant)


def platform_text(platform: Platform | ImageConfig) -> str:
    """``os/arch[/variant]`` as people write it."""
    parts = [platform.os or "unknown", platform.architecture or "unknown", platform.variant or ""]
    return "/".join(part for part in parts if part)


def satisfying(wanted: str, found: Sequence[str | None]) -> list[int]:
    """The places of those platforms in ``found`` that ``wanted`` (``os/arch[/variant]``) means; None: not known.

    Equal ones, as containerd's normalisation has it (:data:`_DEFAULT_VARIANTS`). If there are none, a wish that names
    no variant is met by every variant.
    """
    wish = _normalised(wanted)
    known = [None if text is None else _normalised(text) for text in found]
    equal = [place for place, platform in enumerate(known) if platform == wish]
    if equal or wanted.count("/") != 1:
        return equal
    return [place for place, platform in enumerate(known) if platform is not None and platform[:2] == wish[:2]]


_DEFAULT_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant that a platform without one has, by containerd's platforms/database.go."""
_OTHER_NAMES: Final = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Architectures as others call them, and the variant that such a name implies; None: none."""


def _normalised(text: str) -> tuple[str, ...]:
    """Operating system, architecture, variant; and whatever else the text holds, which no platform has."""
    system, _, rest = text.lower().partition("/")
    architecture, *more = rest.split("/")
    architecture, implied = _OTHER_NAMES.get(architecture, (architecture, None))
    variant = more[0] if more and implied is None else implied or ""
    if variant.isdecimal() and architecture in _DEFAULT_VARIANTS:
        variant = f"v{variant}"
    return (system, architecture, variant or _DEFAULT_VARIANTS.get(architecture, ""), *more[1:])
