"""Dependencies of an image's own programs on its base: libraries with their symbol versions, and interpreters."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from elftools.elf.sections import Section
from elftools.elf.segments import InterpSegment

from layerfarm.jobs.errors import display
from layerfarm.jobs.layer.stack import REGULAR, Source, Stack
from layerfarm.jobs.relayer.rebase_findings import LARGEST, Concern, Trees, Verdict

_ELF: Final = b"\x7fELF"
_SCRIPT: Final = b"#!"
_LONGEST_LINE: Final = 4096
_MOST: Final = 4096
"""Most sections, libraries and versions that are read; a malicious header states billions."""
_ENV: Final = (b"/usr/bin/env", b"/bin/env")
_PATH: Final = (b"/usr/local/sbin/", b"/usr/local/bin/", b"/usr/sbin/", b"/usr/bin/", b"/sbin/", b"/bin/")


# --- one file ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """Dependencies of one file."""

    libraries: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Sonames (ELF DT_NEEDED), each with the symbol versions needed from it (``GLIBC_2.34``)."""
    interpreter: bytes | None = None
    """Path of the program that runs it: the dynamic linker, or the path after ``#!``."""
    command: bytes | None = None
    """The name that ``#!/usr/bin/env`` looks for."""


def needs_of(content: bytes) -> Needs:
    """Return the dependencies of a file; none for a damaged one, or one that is neither ELF nor a script."""
    if content.startswith(_SCRIPT):
        return _script(content[:_LONGEST_LINE])
    if content.startswith(_ELF):
        try:
            return _elf(content)
        except Exception:  # the parser is not made for malicious files, and raises anything
            return Needs()
    return Needs()


def provided_versions(content: bytes) -> frozenset[str]:
    """Return the symbol versions that a library defines."""
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


# --- all programs of an image --------------------------------------------------------------------


def unmet_needs(trees: Trees, command: list[str]) -> Iterator[Concern]:
    """Yield dependencies that the image meets now, but would not meet on the new base.

    ``command``: the image's entrypoint and its arguments.
    """
    programs: dict[Source, bytes] = {}
    for entry, layer, source in trees.image.placed():
        if layer <= trees.below or source is None or entry.type != "file" or entry.size < 4:
            continue
        if not (entry.mode & 0o111 or b".so" in entry.path):
            continue
        if entry.size > LARGEST:
            yield Concern(Verdict.REVIEW, entry.path, "too large to examine its dependencies")
        else:
            programs[source] = entry.path
    wanted = _Wanted()
    for source, content in trees.read_image(programs):
        wanted.add(programs[source], needs_of(content))
    yield from _libraries(trees, wanted)
    for path, user in wanted.interpreters.items():
        yield from _program(trees, path, user, display(path))
    for name, user in wanted.commands.items():
        yield from _program(trees, name, user, display(name), search=True)
    for program in map(str.encode, command[:1]):
        label = f"the image's entrypoint, {display(program)}"
        yield from _program(trees, program, program, label, search=b"/" not in program)


@dataclass
class _Wanted:
    """The dependencies of the image's own files, each with one file that has it."""

    libraries: dict[bytes, tuple[set[str], bytes]] = field(default_factory=dict)
    interpreters: dict[bytes, bytes] = field(default_factory=dict)
    commands: dict[bytes, bytes] = field(default_factory=dict)

    def add(self, path: bytes, needs: Needs) -> None:
        for name, versions in needs.libraries.items():
            self.libraries.setdefault(name.encode(), (set(), path))[0].update(versions)
        if needs.interpreter is not None:
            self.interpreters.setdefault(needs.interpreter, path)
        if needs.command is not None:
            self.commands.setdefault(needs.command, path)


def _libraries(trees: Trees, wanted: _Wanted) -> Iterator[Concern]:
    before, after = _named(trees.image, wanted.libraries), _named(trees.rebased, wanted.libraries)
    changed = []
    for name, (_, user) in wanted.libraries.items():
        if name in before and name not in after:
            yield Concern(Verdict.REFUSE, user, f"needs {display(name)}, which the new base lacks")
        elif name in before and {lib.sha256 for lib in before[name]} != {lib.sha256 for lib in after[name]}:
            changed.append(name)
    had = _versions(trees.read_image(lib for name in changed for lib in before[name]))
    has = _versions(trees.read_rebased(lib for name in changed for lib in after[name]))
    for name in changed:
        versions, user = wanted.libraries[name]
        lost = versions & _all(had, before[name]) - _all(has, after[name])
        if lost:
            what = f"needs {', '.join(sorted(lost))} of {display(name)}, which the new base's lacks"
            yield Concern(Verdict.REFUSE, user, what)


def _named(stack: Stack, names: Iterable[bytes]) -> dict[bytes, list[Source]]:
    """Return the files anywhere in the tree that have these names, links followed."""
    wanted = frozenset(names)
    found: dict[bytes, list[Source]] = {}
    for placed in stack.placed():
        name = placed.entry.path.rpartition(b"/")[2]
        if name in wanted and placed.source is not None:
            source = stack.look_up(placed.entry.path)
            if source is not None and source.member.type == REGULAR:
                found.setdefault(name, []).append(source)
    return found


def _versions(read: Iterator[tuple[Source, bytes]]) -> dict[Source, frozenset[str]]:
    return {source: provided_versions(content) for source, content in read}


def _all(known: Mapping[Source, frozenset[str]], libraries: Iterable[Source]) -> frozenset[str]:
    return frozenset().union(*(known.get(library, frozenset()) for library in libraries))


def _program(trees: Trees, program: bytes, user: bytes, name: str, *, search: bool = False) -> Iterator[Concern]:
    """Return a program by its path, or by its name in the first directory of $PATH that has it."""
    places = [directory + program for directory in _PATH] if search else [program]
    before = next((found for place in places if (found := trees.image.look_up(place))), None)
    after = next((found for place in places if (found := trees.rebased.look_up(place))), None)
    if before is None:
        return
    if after is None:
        yield Concern(Verdict.REFUSE, user, f"is run by {name}, which the new base lacks")
        return
    was, now = (found.member.name.rpartition(b"/")[2] for found in (before, after))
    # python3 that was 3.11 becomes 3.12. The dynamic linker's name contains its version, which does not matter.
    if was != now and not was.startswith(b"ld-"):
        yield Concern(Verdict.REVIEW, user, f"would be run by {display(now)} instead of {display(was)}")
