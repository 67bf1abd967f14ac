"""The catalog file (YAML 1.2): sources, policies and the destination of the images.

All mistakes are reported at once, each with its line and column.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from layerfarm.jobs.errors import CatalogFileError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.validation import fault
from layerfarm.worker.catalog.policies import Policy, Rebase, Section, Transform, checked
from layerfarm.worker.catalog.schedule import Schedule
from layerfarm.worker.catalog.versions import VersionRange, parse_age, parse_size

DOCKER: Final = "docker://"
_PLATFORM: Final = re.compile(r"[a-z0-9_]+/[a-z0-9_-]+(?:/[a-z0-9_.-]+)?", re.IGNORECASE)
_LARGEST: Final = 10 * 10**9
NAME_FIELDS: Final = ("repository", "basename", "tag")
Proofs = Literal["referrer", "store", "off"]
"""Places for proofs: also a registry beside the new images, only the layout where they are made, or none."""


def _check_docker(text: str) -> None:
    if not text.startswith(DOCKER) or len(text) == len(DOCKER):
        raise ValueError("not docker://HOST[:PORT][/PREFIX]")


def _check_directory(text: str) -> None:
    if "://" in text:
        raise ValueError(f"{text!r} is the address of a registry: stores and layouts are directories")


def _check_template(text: str) -> None:
    fields = Formatter().parse(text)  # ValueError: a brace is not closed
    if any(name is not None and (name not in NAME_FIELDS or form or other) for _, name, form, other in fields):
        raise ValueError(f"{text!r} has other fields than {', '.join(f'{{{name}}}' for name in NAME_FIELDS)}")


def _check_limit(text: str) -> None:
    if text != "off":
        parse_size(text)


_Registry = Annotated[str, checked(_check_docker)]
_Directory = Annotated[str, checked(_check_directory)]


class Connection(Section):
    """Credentials and certificates for a registry. None: as in the section ``access`` of the whole catalog."""

    auth_file: str | None = Field(default=None, alias="auth-file")
    """Default: as skopeo, including the files of ``docker login`` and ``podman login``."""
    cert_dir: str | None = Field(default=None, alias="cert-dir")
    """Directory with ``*.crt`` of authorities, ``*.cert`` and ``*.key`` of a client; default: those in ``certs.d``."""
    tls_verify: bool | None = Field(default=None, alias="tls-verify")
    """False: certificates are not checked, and plain HTTP is used if the registry needs it; default True."""

    @property
    def verifies(self) -> bool:
        """Return True if certificates are checked."""
        return self.tls_verify is not False

    def but(self, other: Connection | None) -> Connection:
        """Return the connection with the values that ``other`` has."""
        return self if other is None else self.model_copy(update=other.model_dump(exclude_none=True))


class Access(Connection):
    """Access to registries, and its limits."""

    parallel: int = Field(default=4, ge=1, le=64)
    """Concurrent transfers."""
    per_minute: int | None = Field(default=None, ge=1, alias="per-minute")
    """Maximum number of transfers started in a minute, all registries together."""
    attempts: int = Field(default=5, ge=1, le=100)
    """Attempts at one transfer if the registry is unreachable, busy, or drops the connection."""

    @property
    def connection(self) -> Connection:
        """Return the values for registries without their own."""
        return Connection.model_validate(self.model_dump(by_alias=True, include=set(Connection.model_fields)))


class Source(Section):
    """Images of one registry or of one layout. Exactly one of ``registry`` and ``layout`` is given."""

    registry: _Registry | None = None
    """``docker://HOST[:PORT][/PREFIX]``."""
    repositories: tuple[str, ...] = Field(default=(), strict=False)
    """Repositories below the registry's prefix: not every registry can list them."""
    layout: _Directory | None = None
    """Directory of an OCI layout."""
    tags: tuple[str, ...] = Field(default=("*",), min_length=1, strict=False)
    """Patterns of :mod:`fnmatch`; one must match."""
    exclude: tuple[str, ...] = Field(default=(), strict=False)
    """Patterns of tags that are excluded."""
    newest: int | None = Field(default=None, ge=1)
    """Maximum number of newest tags of each repository."""
    semver: Annotated[str, checked(VersionRange)] | None = None
    """:class:`~layerfarm.worker.catalog.versions.VersionRange` of the tags."""
    newer_than: Annotated[str, checked(parse_age)] | None = Field(default=None, alias="newer-than")
    """Maximum age of the images, as :func:`~layerfarm.worker.catalog.versions.parse_age` reads it."""
    platforms: tuple[str, ...] = Field(default=(), strict=False)
    """``os/arch[/variant]``: the only platforms of the images that are used; empty: all."""
    prefix: str = ""
    """Prefix of the images' names in the catalog."""
    access: Connection | None = None

    @field_validator("platforms")
    @classmethod
    def _are_platforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not _PLATFORM.fullmatch(text):
                raise ValueError(f"{text!r} is not os/arch[/variant], such as linux/arm64")
        return value

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Source:
        if (self.registry is None) == (self.layout is None):
            raise ValueError("give either a registry or a layout")
        if self.registry is not None and not self.repositories:
            raise ValueError("repositories of the registry are missing")
        if self.registry is None and self.access is not None:
            raise ValueError("access needs a registry")
        if self.layout is not None and self.repositories:
            raise ValueError("repositories need a registry; select images of a layout by tags")
        return self


class Destination(Section):
    """The place of the new images; by default the catalog's store."""

    layout: _Directory | None = None
    registry: _Registry | None = None
    strip_prefix: str = Field(default="", alias="strip-prefix")
    """Removed from the start of the images' names."""
    name: Annotated[str, checked(_check_template)] | None = None
    """Template of the names, with the fields :data:`NAME_FIELDS`; by default the names in the catalog."""
    tag_suffix: str = Field(default="", alias="tag-suffix")
    """Added to the end of the names, and so of the tags."""
    access: Connection | None = None
    largest_layer: Annotated[str, checked(_check_limit)] | None = Field(default=None, alias="largest-layer")
    """Size that no layer may exceed, or ``off``; default: 10 GB for a registry, where many stop, else ``off``."""
    replace: bool = False
    """True: new images may replace the originals in a source."""

    @property
    def largest(self) -> int | None:
        """Return the bytes that no layer may exceed; None: no limit."""
        if self.largest_layer is None:
            return _LARGEST if self.registry is not None else None
        return None if self.largest_layer == "off" else parse_size(self.largest_layer)

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Destination:
        if self.layout is not None and self.registry is not None:
            raise ValueError("give either a layout or a registry")
        if self.registry is None and self.access is not None:
            raise ValueError("access needs a registry")
        if self.layout is None and self.registry is None and (self.strip_prefix or self.name or self.tag_suffix):
            raise ValueError("names need a layout or a registry")
        return self


class CatalogFile(Section):
    """A whole catalog file. Relative paths in it are relative to its directory; here they are absolute."""

    store: _Directory
    """The layout that holds everything; created if missing."""
    sources: tuple[Source, ...] = Field(min_length=1, strict=False)
    policies: tuple[Policy, ...] = Field(min_length=1, strict=False)
    """The first one that matches an image applies; an image without a policy is left out."""
    destination: Destination = Destination()
    access: Access = Access()
    order: Literal["created", "name"] = "created"
    """The order of the tags of a repository."""
    proofs: Proofs = "referrer"
    schedule: Schedule | None = None
    """Whole runs by ``catalog serve``; default: none."""


def read_catalog(path: Path) -> CatalogFile:
    """Read the catalog file at ``path``.

    Raises:
        CatalogFileError: it cannot be read, is not YAML, or is not a catalog.
        LimitExceeded: it is larger than the limit ``document_bytes``.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(limits().document_bytes + 1)
    except OSError as error:
        raise CatalogFileError(f"catalog file cannot be read, {error.strerror}", where=path) from error
    if len(raw) > limits().document_bytes:
        raise limits().exceeded("document_bytes", "catalog file is larger than {} bytes", path)
    return parse_catalog(raw, path)


def parse_catalog(raw: bytes, path: Path) -> CatalogFile:
    """Parse ``raw`` as the content of the catalog file ``path``. Raises as :func:`read_catalog`."""
    try:
        data = YAML(typ="rt", pure=True).load(raw)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise CatalogFileError(f"not YAML, {error.problem or error.context}", where=place) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise CatalogFileError(f"not YAML, {_first_line(error)}", where=path) from error
    if not isinstance(data, CommentedMap):
        raise CatalogFileError("not a YAML mapping with store, sources and policies", where=path)
    try:
        catalog = CatalogFile.model_validate(data)
    except ValidationError as error:
        raise _explained(error, data, path) from error
    return _absolute(catalog, path.absolute().parent)


def _explained(error: ValidationError, data: CommentedMap, path: Path) -> CatalogFileError:
    mistakes = []
    found = error.errors(include_url=False)
    # A sequence is also "too short" if its items are wrong; that is not a second mistake.
    inner = {other["loc"][:depth] for other in found for depth in range(len(other["loc"]))}
    for one in found:
        if one["loc"] in inner:
            continue
        line, column, known = _position(data, one["loc"])
        name = ".".join(known) or "catalog"
        mistakes.append((line, column, f"{name}: {fault(one)}"))
    mistakes.sort()
    (line, column, first), *others = mistakes
    rest = "".join(f"; {path.name}:{a}:{b} {text}" for a, b, text in others)
    return CatalogFileError(f"{first}{rest}", where=f"{path}:{line}:{column}")


def _position(data: CommentedMap, loc: tuple[int | str, ...]) -> tuple[int, int, list[str]]:
    """Return line and column, from 1, of the innermost part of ``loc`` that the file holds, and the names above it.

    pydantic's ``loc`` also has members of unions, which are not in the file; a missing key has the position of its
    mapping.
    """
    line, column = data.lc.line, data.lc.col
    here: Any = data
    names: list[str] = []
    for part in loc:
        if isinstance(here, CommentedMap) and part in here:
            line, column = here.lc.key(part)
        elif isinstance(here, CommentedSeq) and isinstance(part, int) and part < len(here):
            line, column = here.lc.item(part)
        elif part == loc[-1] and isinstance(here, CommentedMap):
            names.append(str(part))
            break
        else:
            continue
        here = here[part]
        names.append(str(part))
    return line + 1, column + 1, names


ConnectionT = TypeVar("ConnectionT", bound=Connection)
PlaceT = TypeVar("PlaceT", Source, Destination)


def _absolute(catalog: CatalogFile, base: Path) -> CatalogFile:
    def path(text: str) -> str:
        return str(base / text)

    def connection(one: ConnectionT) -> ConnectionT:
        found = {name: getattr(one, name) for name in ("auth_file", "cert_dir")}
        return one.model_copy(update={name: path(text) for name, text in found.items() if text is not None})

    def placed(one: PlaceT) -> PlaceT:
        changes: dict[str, Any] = {} if one.layout is None else {"layout": path(one.layout)}
        return one.model_copy(update=changes | ({} if one.access is None else {"access": connection(one.access)}))

    policies = tuple(
        policy.model_copy(update={"do": policy.do.model_copy(update=_bases(policy.do, path))})
        for policy in catalog.policies
    )
    changes: dict[str, Any] = {
        "store": path(catalog.store),
        "sources": tuple(map(placed, catalog.sources)),
        "policies": policies,
        "destination": placed(catalog.destination),
        "access": connection(catalog.access),
    }
    return catalog.model_copy(update=changes)


def _bases(policy: Transform, path: Callable[[str], str]) -> dict[str, str]:
    if not isinstance(policy, Rebase):
        return {}
    return {name: path(getattr(policy, name)) for name in ("old_base", "new_base")}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
