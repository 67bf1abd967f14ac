"""OCI JSON documents: parsed strictly, written the same way every time."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, PrivateAttr, ValidationError, model_validator

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.validation import first_error


class Document(BaseModel):
    """An OCI JSON document. Unknown fields and the order of all fields survive a rewrite."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    _order: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        document = handler(data)
        if isinstance(data, dict) and isinstance(document, Document):
            # As document._order = …, which pydantic makes three times as slow.
            document.__pydantic_private__["_order"] = tuple(data)  # type: ignore[index]
        return document

    def __eq__(self, other: object) -> bool:
        """Compare by content, whatever the order of keys."""
        return (
            type(self) is type(other)
            and isinstance(other, Document)
            and self.__dict__ == other.__dict__
            and self.__pydantic_extra__ == other.__pydantic_extra__
        )

    __hash__ = None  # type: ignore[assignment]  # lists and dicts inside; compare, do not hash


DocumentT = TypeVar("DocumentT", bound=Document)


def parse_document(model: type[DocumentT], raw: bytes, where: str, limit: str = "document_bytes") -> DocumentT:
    """Parse ``raw`` as a ``model``; ``where`` (a digest, a file name) goes into the error.

    Raises:
        MalformedDocument: not JSON, or invalid by the model's schema.
        LimitExceeded: longer than the limit of that name.
    """
    bounds = limits()
    if len(raw) > getattr(bounds, limit):
        raise bounds.exceeded(limit, "document is larger than {} bytes", where)
    try:
        # Decoded here: json would also guess at UTF-16 and UTF-32, which no document may be (RFC 8259 8.1).
        value = json.loads(raw.decode(), parse_constant=_refuse_constant)
        if b"\\u" in raw:
            # A str with an escaped lone surrogate cannot be written to a UTF-8 document again.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedDocument(f"not a JSON document, {_first_line(error)}", where=where) from error
    if not isinstance(value, dict):
        raise MalformedDocument("JSON document is not an object", where=where)
    if raw.count(b"[") + raw.count(b"{") > bounds.document_depth and _depth(value) > bounds.document_depth:
        raise bounds.exceeded("document_depth", "document is nested deeper than {}", where)
    try:
        return model.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise MalformedDocument(f"not a valid {model.__name__}, {explain(error)}", where=where) from error


def _depth(value: Any) -> int:
    """Return the depth of nested lists and objects: pydantic's serializer fails at some depth of unknown fields."""
    level = [value]
    depth = 0
    while level:
        depth += 1
        below = [item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder)]
        level = [item for item in below if isinstance(item, dict | list)]
    return depth


def encode_document(document: Document) -> bytes:
    """Compact JSON in UTF-8: the same document always gives the same bytes (law 1, docs/architecture.md).

    Known fields without a value are left out.
    """
    return json.dumps(_plain(document), separators=(",", ":"), ensure_ascii=False).encode()


def encode_around(document: Document, field: str) -> tuple[bytes, bytes]:
    """Return the bytes that :func:`encode_document` writes before and after the items of the list ``field``."""
    plain = _plain(document)
    names = list(plain)
    place = names.index(field)
    before, after = ({name: plain[name] for name in part} for part in (names[:place], names[place + 1 :]))
    start, end = (json.dumps(part, separators=(",", ":"), ensure_ascii=False)[1:-1] for part in (before, after))
    head = "{" + (start + "," if start else "") + json.dumps(field) + ":["
    return head.encode(), ("]" + ("," + end if end else "") + "}").encode()


def explain(error: Exception) -> str:
    """Return a validation error as one line: place and description of the first fault."""
    return first_error(error) if isinstance(error, ValidationError) else _first_line(error)


def _plain(value: Any) -> Any:
    if isinstance(value, Document):
        return _plain_document(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _plain_document(document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in type(document).model_fields.items():
        value = getattr(document, name)
        if value is not None:
            found[field.alias or name] = _plain(value)
    for key, value in (document.__pydantic_extra__ or {}).items():
        found[key] = _plain(value)
    ordered = {key: found[key] for key in document._order if key in found}
    return ordered | found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
