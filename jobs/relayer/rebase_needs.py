"""What a program needs of the system that it lies on: libraries with their symbol versions, interpreters."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from elftools.elf.sections import Section
from elftools.elf.segments import InterpSegment

_ELF: Final = b"\x7fELF"
_SCRIPT: Final = b"#!"
_LONGEST_LINE: Final = 4096
_MOST: Final = 4096
"""Sections, libraries, versions that are looked at; a hostile header promises billions."""
_ENV: Final = (b"/usr/bin/env", b"/bin/env")


@dataclass(frozen=True)
class Needs:
    """What one file asks for."""

    libraries: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Sonames (ELF DT_NEEDED), each with the symbol versions that are wanted of it (``GLIBC_2.34``)."""
    interpreter: bytes | None = None
    """Path of the program that runs it: of the dynamic linker, or behind ``#!``."""
    command: bytes | None = None
    """The name that ``#!/usr/bin/env`` looks for."""


def needs_of(content: bytes) -> Needs:
    """The needs of a file; none for what is neither ELF nor a script, or is damaged: it runs nowhere, then."""
    if content.startswith(_SCRIPT):
        return _script(content[:_LONGEST_LINE])
    if content.startswith(_ELF):
        try:
            return _elf(content)
        except Exception:  # the parser was not made for hostile files, and raises whatever it comes upon
            return Needs()
    return Needs()


def provided_versions(content: bytes) -> frozenset[str]:
    """The symbol versions that a library defines."""
    try:
        elf = ELFFile(io.BytesIO(content))
        return frozenset(
            auxiliary.name
            for section in _sections(elf)
            if isinstance(section, GNUVerDefSection)
            for _, auxiliaries in islice(section.iter_versions(), _MOST)
            for auxiliary in islice(auxiliaries, _MOST)
        )
    except Exception:  # as above
        return frozenset()


def _script(head: bytes) -> Needs:
    words = head[len(_SCRIPT) :].partition(b"\n")[0].split()
    if not words or not words[0].startswith(b"/"):
        return Needs()
    if words[0] in _ENV:
        rest = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
        return Needs(interpreter=words[0], command=rest[0] if rest else None)
    return Needs(interpreter=words[0])


def _elf(content: bytes) -> Needs:
    elf = ELFFile(io.BytesIO(content))
    wanted: dict[str, set[str]] = {}
    interpreter = None
    for segment in islice(elf.iter_segments(), _MOST):
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name().encode()
        elif isinstance(segment, DynamicSegment):
            tag: Any
            for tag in islice(segment.iter_tags("DT_NEEDED"), _MOST):
                wanted.setdefault(tag.needed, set())
    for section in _sections(elf):
        if isinstance(section, GNUVerNeedSection):
            for version, auxiliaries in islice(section.iter_versions(), _MOST):
                names = {auxiliary.name for auxiliary in islice(auxiliaries, _MOST)}
                wanted.setdefault(str(version.name), set()).update(names)
    return Needs({name: frozenset(versions) for name, versions in wanted.items()}, interpreter)


def _sections(elf: ELFFile) -> Iterator[Section]:
    return islice(elf.iter_sections(), _MOST)
