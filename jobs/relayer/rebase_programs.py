"""What the image's own programs need of the base: libraries with their symbol versions, interpreters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from layerfarm.jobs.errors import display
from layerfarm.jobs.layer.stack import REGULAR, Source, Stack
from layerfarm.jobs.relayer.rebase_evidence import LARGEST, Concern, Contents, Trees, Verdict
from layerfarm.jobs.relayer.rebase_needs import Needs, needs_of, provided_versions

_PATH: Final = (b"/usr/local/sbin/", b"/usr/local/bin/", b"/usr/sbin/", b"/usr/bin/", b"/sbin/", b"/bin/")


def unmet_needs(trees: Trees, contents: Contents) -> Iterator[Concern]:
    """Needs that are met in the image as it is, and would not be on the new base."""
    programs: dict[Source, bytes] = {}
    for entry, layer, source in trees.image.placed():
        if layer <= trees.below or source is None or entry.type != "file" or entry.size < 4:
            continue
        if not (entry.mode & 0o111 or b".so" in entry.path):
            continue
        if entry.size > LARGEST:
            yield Concern(Verdict.REVIEW, entry.path, "too large to be looked into for what it needs")
        else:
            programs[source] = entry.path
    wanted = _Wanted()
    for source, content in contents.of_image(programs):
        wanted.add(programs[source], needs_of(content))
    yield from _libraries(trees, contents, wanted)
    yield from _interpreters(trees, wanted)
    yield from _entrypoint(trees, contents)


@dataclass
class _Wanted:
    """What the image's own files ask for, each with one that does."""

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


def _libraries(trees: Trees, contents: Contents, wanted: _Wanted) -> Iterator[Concern]:
    before, after = _named(trees.image, wanted.libraries), _named(trees.rebased, wanted.libraries)
    changed = []
    for name, (_, user) in wanted.libraries.items():
        if name in before and name not in after:
            yield Concern(Verdict.REFUSE, user, f"needs {display(name)}, which the new base has not")
        elif name in before and {lib.sha256 for lib in before[name]} != {lib.sha256 for lib in after[name]}:
            changed.append(name)
    had = _versions(contents.of_image(lib for name in changed for lib in before[name]))
    has = _versions(contents.of_rebased(lib for name in changed for lib in after[name]))
    for name in changed:
        versions, user = wanted.libraries[name]
        lost = versions & _all(had, before[name]) - _all(has, after[name])
        if lost:
            what = f"needs {', '.join(sorted(lost))} of {display(name)}, which the new base's does not have"
            yield Concern(Verdict.REFUSE, user, what)


def _named(stack: Stack, names: Iterable[bytes]) -> dict[bytes, list[Source]]:
    """The files that lie anywhere under these names, links followed."""
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


def _interpreters(trees: Trees, wanted: _Wanted) -> Iterator[Concern]:
    for path, user in wanted.interpreters.items():
        yield from _program(trees, [path], user, display(path))
    for name, user in wanted.commands.items():
        yield from _program(trees, [directory + name for directory in _PATH], user, display(name))


def _program(trees: Trees, places: Iterable[bytes], user: bytes, name: str) -> Iterator[Concern]:
    """A program that is at the first of some places where there is one."""
    places = list(places)
    before = next((found for place in places if (found := trees.image.look_up(place))), None)
    after = next((found for place in places if (found := trees.rebased.look_up(place))), None)
    if before is None:
        return
    if after is None:
        yield Concern(Verdict.REFUSE, user, f"is run by {name}, which the new base has not")
        return
    was, now = (found.member.name.rpartition(b"/")[2] for found in (before, after))
    # python3 that was 3.11 and is 3.12 now; the dynamic linker's own name tells its version, and says nothing.
    if was != now and not was.startswith(b"ld-"):
        yield Concern(Verdict.REVIEW, user, f"is run by {display(now)} then, and by {display(was)} now")


def _entrypoint(trees: Trees, contents: Contents) -> Iterator[Concern]:
    section = contents.section
    command = [*((section.entrypoint if section else None) or []), *((section.cmd if section else None) or [])][:1]
    for program in map(str.encode, command):
        places = [program] if b"/" in program else [directory + program for directory in _PATH]
        yield from _program(trees, places, program, "the image's entrypoint, " + display(program))
