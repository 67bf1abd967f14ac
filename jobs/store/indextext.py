"""``index.json`` as text, cut into its entries: what a change of few tags among many is made on.

64,000 tags are 14 MB of JSON: 2 s to read into documents, and 1 s to write them out again. Tags are given one
after another, so most of that is the same as it was a moment ago. Here the bytes of each entry are kept, a
change makes only the entries that it is about, and a text is read from the first entry on that is not known yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, ValidationError

from layerfarm.jobs.errors import LayerfarmError, MalformedDocument
from layerfarm.jobs.store.descriptor import REF_NAME, Descriptor, Index, check_digest, empty_if_null
from layerfarm.jobs.store.document import encode_around, encode_document, parse_document
from layerfarm.jobs.store.refs import name_of


@dataclass(frozen=True)
class IndexText:
    """One ``index.json``. Made by :meth:`parse`, and from that one by changes; never changed itself."""

    head: bytes
    """Up to the first entry."""
    tail: bytes
    """From the end of the last entry."""
    entries: list[bytes]
    names: list[str | None]
    """The tag of each entry."""
    raw: bytes | None = None
    """The file as it was read, if that is not what :meth:`encode` gives: another tool's."""

    @classmethod
    def parse(cls, raw: bytes, where: str) -> IndexText:
        """
        Raises:
            MalformedDocument: it is no index.
            LimitExceeded: it is too large or nested too deeply.
        """
        text = cls.of(*parse_index(raw, where))
        return text if text.encode() == raw else cls(text.head, text.tail, text.entries, text.names, raw)

    @classmethod
    def of(cls, index: Index, odd: Mapping[int, Any] = {}) -> IndexText:
        """The text of an index and, by their places, of the entries that :func:`parse_index` found odd."""
        head, tail = encode_around(index, "manifests")
        entries = [encode_document(entry) for entry in index.manifests]
        names = [name_of(entry) for entry in index.manifests]
        for place in sorted(odd):
            entries.insert(place, json.dumps(odd[place], separators=(",", ":"), ensure_ascii=False).encode())
            names.insert(place, _name_of_odd(odd[place]))
        return cls(head, tail, entries, names)

    @cached_property
    def body(self) -> bytes:
        """Head and entries."""
        return self.head + b",".join(self.entries)

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """For each tag, in their order in the index, which entries have it; one, as a rule."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.names):
            if name is not None:
                found.setdefault(name, []).append(place)
        return found

    def encode(self) -> bytes:
        return self.body + self.tail

    def mentions(self, text: str) -> bool:
        """Whether ``text`` stands anywhere in it."""
        return text.encode() in (self.raw or self.encode())

    def is_of(self, raw: bytes) -> bool:
        """Whether this is what ``raw`` says."""
        if self.raw is not None:
            return raw == self.raw
        return len(raw) == len(self.body) + len(self.tail) and raw.startswith(self.body) and raw.endswith(self.tail)

    def goes_on(self, raw: bytes, where: str) -> IndexText | None:
        """``raw`` read from the first entry that is not here; None if it is not this index with other entries."""
        if self.raw is not None or not (raw.startswith(self.head) and raw.endswith(self.tail)):
            return None
        if len(raw) < len(self.head) + len(self.tail):
            return None
        if self.entries and len(raw) > len(self.body) and raw.startswith(self.body) and raw[len(self.body)] == _COMMA:
            known, place = self, len(self.body) + 1
        else:
            count, place = self._common(raw)
            known = IndexText(self.head, self.tail, self.entries[:count], self.names[:count])
        more = raw[place : len(raw) - len(self.tail)]
        read = _read_entries(more, where)
        # The same bytes, so nothing but entries stands between the last known one and the tail.
        if read is None or not read[0] or b",".join(read[0]) != more:
            return None
        return known._with(*read)

    def _common(self, raw: bytes) -> tuple[int, int]:
        """How many entries ``raw`` begins with as this does, each with a comma, and where in ``raw`` they end."""
        place, low, high = len(self.head), 0, len(self.entries)
        while low < high:
            middle = (low + high + 1) // 2
            part = b",".join(self.entries[low:middle]) + b","
            if raw.startswith(part, place):
                low, place = middle, place + len(part)
            else:
                high = middle - 1
        return low, place

    def find(self, tag: str) -> list[Descriptor]:
        """The descriptors with this tag."""
        return [parse_document(Descriptor, self.entries[place], tag) for place in self.places.get(tag, ())]

    def change(self, tags: Mapping[str, Descriptor | None]) -> IndexText:
        """With each of the tags naming its descriptor only, in the place where it was, else at the end; None: nothing.

        Returns itself if that is so already.
        """
        put: dict[int, Descriptor] = {}
        gone: set[int] = set()
        more: list[Descriptor] = []
        for tag, descriptor in tags.items():
            places = self.places.get(tag, [])
            if descriptor is None:
                gone.update(places)
            elif places:
                put[places[0]] = descriptor
                gone.update(places[1:])
            else:
                more.append(descriptor)
        if not put and not gone:
            return self._with([encode_document(entry) for entry in more], [name_of(entry) for entry in more])
        entries, names = list(self.entries), list(self.names)
        for place, descriptor in put.items():
            entries[place], names[place] = encode_document(descriptor), name_of(descriptor)
        kept = [place for place in range(len(entries)) if place not in gone] if gone else range(len(entries))
        changed = IndexText(self.head, self.tail, [entries[n] for n in kept], [names[n] for n in kept])
        if changed.entries == self.entries and not more:
            return self
        return changed.change({name_of(entry) or "": entry for entry in more}) if more else changed

    def _with(self, entries: Iterable[bytes], names: Iterable[str | None]) -> IndexText:
        """With more entries at the end."""
        more, called = list(entries), list(names)
        if not more:
            return self
        new = IndexText(self.head, self.tail, self.entries + more, self.names + called)
        places = dict(self.places)
        for place, name in enumerate(called, len(self.names)):
            if name is not None:
                places[name] = [*places.get(name, ()), place]
        # What is known already is not put together again.
        new.__dict__.update(body=self.body + (b"," if self.entries else b"") + b",".join(more), places=places)
        return new


class _AnyIndex(Index):
    """An index whose entries are not looked at."""

    manifests: Annotated[list[Any], BeforeValidator(empty_if_null)] = Field(default_factory=list)


def parse_index(raw: bytes, where: str) -> tuple[Index, dict[int, Any]]:
    """``index.json``, and its entries that are no valid descriptors, by their places.

    Other tools write into the same layout: what one of them wrote wrong under its own tag is for those who ask for
    that tag to complain of.

    Raises:
        MalformedDocument: it is no index.
        LimitExceeded: it is too large or nested too deeply.
    """
    try:
        return parse_document(Index, raw, where, "index_bytes"), {}
    except MalformedDocument:
        index = parse_document(_AnyIndex, raw, where, "index_bytes")
    found: list[Descriptor] = []
    odd: dict[int, Any] = {}
    for place, value in enumerate(index.manifests):
        try:
            found.append(Descriptor.model_validate(value))
        except ValidationError:
            odd[place] = value
    return index.model_copy(update={"manifests": found}), odd


def _name_of_odd(value: Any) -> str | None:
    annotations = value.get("annotations") if isinstance(value, dict) else None
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


_COMMA: Final = ord(",")
_PLAIN: Final = frozenset(("mediaType", "digest", "size", "annotations"))


def _read_entries(text: bytes, where: str) -> tuple[list[bytes], list[str | None]] | None:
    """The bytes and the tag of each of the entries in ``text``; None: what it is, whoever reads all will find."""
    try:
        values = json.loads(b"[" + text + b"]")
        # Most are of four plain fields, which are looked at here in a fifth of the time that a document takes.
        if all(map(_is_plain, values)):
            entries = [json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() for value in values]
            return entries, [(value.get("annotations") or {}).get(REF_NAME) for value in values]
        index = parse_document(Index, b'{"schemaVersion":2,"manifests":[' + text + b"]}", where, "index_bytes")
    except (ValueError, RecursionError, LayerfarmError):
        return None
    return [encode_document(entry) for entry in index.manifests], [name_of(entry) for entry in index.manifests]


def _is_plain(value: Any) -> bool:
    """Whether this is a descriptor of the fields of nearly all entries, each of the right type."""
    if type(value) is not dict or not value.keys() <= _PLAIN:
        return False
    annotations = value.get("annotations", {})
    return (
        type(value.get("mediaType")) is str
        and type(value.get("size")) is int
        and value["size"] >= 0
        and type(annotations) is dict
        and all(type(each) is str for each in annotations.values())
        and type(value.get("digest")) is str
        and check_digest(value["digest"]) is not None
    )
