"""An OCI image layout, shared by many processes: a content-addressed store with tags (image-layout.md)."""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from layerfarm.jobs.errors import (
    AmbiguousReference,
    BlobNotFound,
    LayerfarmError,
    StoreError,
    TagNotFound,
)
from layerfarm.jobs.fs.closing import ClosedOnError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.atomic_file import (
    BLOBS,
    PRIVATE_DIRECTORY,
    explained,
    make_directory,
)
from layerfarm.jobs.store.blob import Ingest, VerifiedReader, check_size, embedded_data, hasher, late_pauses, refresh
from layerfarm.jobs.store.descriptor import Descriptor, Index, check_digest, named
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.index import IndexFile
from layerfarm.jobs.store.index_text import IndexText, parse_index
from layerfarm.jobs.store.layout_directory import check_directory, create_directory
from layerfarm.jobs.store.leases import cover
from layerfarm.jobs.store.locks import Lock
from layerfarm.jobs.store.retention import Trash
from layerfarm.jobs.store.tag_batch import TagBatch, TagRequest
from layerfarm.jobs.store.tag_group import group_for

__all__ = ["Layout"]

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Layout:
    """An open layout. Made by :meth:`create` or :meth:`open`; holds no file open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = IndexFile(path)
        self._trash = Trash(path)

    @classmethod
    def create(cls, path: Path) -> Layout:
        """Create a new, empty layout at a path that does not exist or is an empty directory, such as a mount point.

        Raises:
            LayoutExists: something else is at ``path``, or another process is creating a layout there.
            StoreError: the directory cannot be created.
        """
        create_directory(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Layout:
        """Open the layout at ``path``.

        Raises:
            NotALayout: there is none, or it is of another version.
            MalformedDocument: ``oci-layout`` does not parse.
        """
        check_directory(path)
        return cls(path)

    # --- blobs ---------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Return the path of the blob, stored or not. Raises StoreError if ``digest`` is not one."""
        return Path(self._blob_file(digest))

    def _blob_file(self, digest: str) -> str:
        """Return :meth:`blob_path` without pathlib, which takes as long as the system call that follows."""
        try:
            algorithm, _, encoded = check_digest(digest).partition(":")
        except ValueError as error:
            raise StoreError("not a digest", where=digest[:200]) from error
        return f"{self.path}/{BLOBS}/{algorithm}/{encoded}"

    def has(self, descriptor: Descriptor) -> bool:
        """Return True if the blob is there with the expected size; its content is not read."""
        return self._has(descriptor) or (self._trash.restore(descriptor.digest) and self._has(descriptor))

    def _has(self, descriptor: Descriptor) -> bool:
        try:
            return os.stat(self._blob_file(descriptor.digest)).st_size == descriptor.size
        except (FileNotFoundError, NotADirectoryError):
            return False

    def lacks(self, descriptor: Descriptor) -> bool:
        """Return True if the blob is absent. A damaged one is not: reading it raises.

        An index may name manifests that the layout does not hold (image-layout.md "Blobs"): ``docker save`` writes
        them for platforms that were never pulled.
        """
        if descriptor.data is not None:
            return False
        try:
            os.close(self._open(descriptor.digest, self.blob_path(descriptor.digest)))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def claim(self, descriptor: Descriptor) -> bool:
        """Do as :meth:`has`, and protect the blob from garbage collectors.

        Before it returns True, the blob is added to the lease of the current job (:mod:`layerfarm.jobs.store.leases`)
        and marked as just used.
        """
        path = self._blob_file(descriptor.digest)
        cover(self.path, descriptor.digest)
        if refresh(path, descriptor.size):
            return True
        return self._trash.restore(descriptor.digest) and refresh(path, descriptor.size)

    def pin(self, descriptor: Descriptor) -> None:
        """:meth:`claim` a blob that is only read; has no effect in a read-only layout."""
        try:
            self.claim(descriptor)
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _READ_ONLY:
                raise

    def ingest(self, algorithm: str = "sha256") -> Ingest:
        """Begin a blob that is written in pieces."""
        return Ingest(self.path, algorithm)

    def put(self, chunks: bytes | Iterable[bytes], media_type: str, **fields: Any) -> Descriptor:
        """Store a blob; returns its descriptor, with ``fields`` (annotations, platform) on it."""
        stored = self._held(chunks) if isinstance(chunks, bytes) else None
        if stored is None:
            with self.ingest() as blob:
                for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
                    blob.write(chunk)
                stored = blob.commit()
        digest, size = stored
        return Descriptor.model_validate({"mediaType": media_type, "digest": digest, "size": size} | fields)

    def _held(self, content: bytes) -> tuple[str, int] | None:
        """Return digest and size if the layout has the blob, which is then claimed; nothing is staged for it."""
        digest = f"sha256:{sha256(content).hexdigest()}"
        cover(self.path, digest)
        return (digest, len(content)) if refresh(self.blob_path(digest), len(content)) else None

    def put_document(self, document: Document, media_type: str, **fields: Any) -> Descriptor:
        """Store a JSON document; returns its descriptor."""
        return self.put(encode_document(document), media_type, **fields)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob, verified while it is read (:class:`~layerfarm.jobs.store.blob.VerifiedReader`).

        Raises:
            BlobNotFound: the store does not hold it, and the descriptor does not embed it.
            SizeMismatch: the file has another size.
            DigestMismatch: the data embedded in the descriptor is not the expected blob.
        """
        embedded = embedded_data(descriptor)
        path = self.blob_path(descriptor.digest)
        hasher(descriptor.digest)  # refuse an unknown algorithm before anything is opened
        try:
            fd = self._open(descriptor.digest, path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if embedded is not None:
                return io.BytesIO(embedded)
            raise BlobNotFound("store does not hold the blob", where=descriptor.digest) from error
        except OSError as error:
            raise StoreError(f"blob cannot be read, {error.strerror}", where=path) from error
        with ClosedOnError(fd):
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise StoreError("blob is not a regular file", where=path)
            check_size(descriptor.digest, descriptor.size, found.st_size)
        return VerifiedReader(fd, descriptor)

    def _open(self, digest: str, path: Path) -> int:
        """Open the file of a blob, also from the trash; retry where another host's new file may appear late."""
        for pause in (*late_pauses(self.path), None):
            try:
                return os.open(path, _READ)
            except (FileNotFoundError, NotADirectoryError):
                if self._trash.restore(digest):
                    continue
                trashed = self._trash.open(digest)
                if trashed is not None:  # not restored, in a read-only layout
                    return trashed
                if pause is None:
                    raise
                time.sleep(pause)
        return os.open(path, _READ)

    def read(self, descriptor: Descriptor) -> bytes:
        """Read and verify a whole document.

        Raises:
            LimitExceeded: its descriptor gives a size above the limit ``document_bytes``.
            BlobNotFound, SizeMismatch, DigestMismatch: as :meth:`open_blob`, and reading it.
        """
        bounds = limits()
        if descriptor.size > bounds.document_bytes:
            raise bounds.exceeded("document_bytes", "blob is larger than {} bytes", descriptor.digest)
        with self.open_blob(descriptor) as stream:
            return stream.read()

    def scratch(self) -> Path:
        """Return a directory on the layout's file system for unnamed files; created if missing.

        Raises:
            StoreError: it cannot be made.
        """
        directory = self.path / PRIVATE_DIRECTORY / "ingest"
        with explained("cannot stage files in the layout", directory):
            make_directory(directory, self.path)
        return directory

    # --- tags ----------------------------------------------------------------------------------

    def index(self) -> Index:
        """Return ``index.json`` as it is now, without invalid descriptors.

        Raises MalformedDocument if it is not an index.
        """
        return self._parts()[0]

    def faults(self) -> list[tuple[str | None, LayerfarmError]]:
        """Return the tag, if any, and the fault of each entry of ``index.json`` that is not a valid descriptor."""
        found: list[tuple[str | None, LayerfarmError]] = []
        text = self.index_text()
        for name, entry in zip(text.names, text.entries, strict=True):
            try:
                parse_document(Descriptor, entry, str(self._index.path))
            except LayerfarmError as error:
                found.append((name, error))
        return found

    def index_text(self) -> IndexText:
        """Return ``index.json`` cut into its entries; only new entries are parsed."""
        return self._index.seen()

    def now(self) -> float:
        """Return seconds on the store's clock, which may differ from other machines' clocks."""
        return self._index.now()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Let this thread read the index once for :meth:`find`, :meth:`tags` and :meth:`index_text`.

        Later changes by others are not seen meanwhile, its own are. For work that asks for many tags: each question
        reads the whole index otherwise.
        """
        with self._index.steady():
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Prevent changes of tags meanwhile."""
        with self._index.locked():
            yield

    def update_index(self, change: Callable[[Index], Index]) -> Index:
        """Replace ``index.json`` by ``change(index)``. No concurrent update is lost (umoci #146).

        ``change`` is called under the layout's lock and must be quick; :meth:`tag` is faster for one tag.
        """

        def under(lock: Lock) -> Index:
            text = self._index.settled()
            old, odd = parse_index(text.raw or text.encode(), str(self._index.path))
            new = change(old)
            self._index.replace(lock, text, text if new == old else IndexText.of(new, odd))
            return new

        return self._index.holding(under)

    def tags(self) -> list[str]:
        """Return every tag once, in the order of the index."""
        return list(self._index.seen().places)

    def find(self, tag: str) -> list[Descriptor]:
        """Return the descriptors that the tag names; usually none or one, but the spec allows several.

        A tag that this thread's group will set (:mod:`layerfarm.jobs.store.tag_group`) counts as set.
        """
        group = group_for(self.path)
        later = group.named(self, tag) if group is not None else None
        return self._index.seen().find(tag) if later is None else [later]

    def names_only(self, tag: str, digest: str) -> bool:
        """Return True if the tag names the blob with this digest, and no other."""
        group = group_for(self.path)
        later = group.named(self, tag) if group is not None else None
        return self._index.seen().names_only(tag, digest) if later is None else later.digest == digest

    def attach(self, *referrers: Descriptor) -> None:
        """Add entries without tags to the index, each a referrer of the subject in its annotation; idempotent.

        Within a piece of a group, they are added when that is written.
        """
        group = group_for(self.path)
        if group is not None:
            group.attach(self, referrers)
        else:
            self._index.update(lambda index: index.attached(referrers))

    def tag(
        self,
        name: str,
        descriptor: Descriptor,
        needs: Iterable[Descriptor] = (),
        once: str = "",
        referrers: Iterable[Descriptor] = (),
    ) -> None:
        """Make ``name`` the tag of ``descriptor`` only; concurrent writers are batched (``tag_batch``).

        Within a piece of a :class:`~layerfarm.jobs.store.tag_group.TagGroup`, it is set when that is written.

        Parameters:
            needs: blobs of the image. They are checked under the lock that a garbage collection holds: either that sees
                the tag and keeps them, or they are gone and no tag is set.
            once: if not empty, nothing is done if the tag was already set under this name, whatever it names now
                (:class:`layerfarm.jobs.store.retention.Commits`).
            referrers: entries that are added with the tag, as :meth:`attach` does.

        Raises:
            InvalidReference: ``name`` breaks the grammar.
            BlobNotFound: a blob of ``needs`` is missing.
        """
        request = TagRequest(tag=name, descriptor=descriptor, needs=list(needs), once=once, referrers=list(referrers))
        group = group_for(self.path)
        if group is not None:
            group.tag(self, request)
        else:
            TagBatch(self.path, self._index, self.has).give(request)

    def tag_all(self, requests: Sequence[TagRequest], referrers: Iterable[Descriptor]) -> list[BlobNotFound | None]:
        """Set tags in this order as :meth:`tag` does, and attach referrers, with one write of the index.

        Return the error of each request. Raises StoreError: the index cannot be written, and is unchanged.
        """
        return TagBatch(self.path, self._index, self.has).give_all(requests, referrers)

    def copy_tag(self, old: str, new: str) -> Descriptor:
        """Make ``new`` a tag of the descriptor that ``old`` names, in one step; return the descriptor.

        Raises:
            TagNotFound: ``old`` names nothing.
            AmbiguousReference: it names several.
            InvalidReference: ``new`` breaks the grammar.
        """
        found: list[Descriptor] = []

        def change(index: IndexText) -> IndexText:
            found[:] = index.find(old)
            if not found:
                raise TagNotFound("tag not found", where=f"{self.path}:{old}")
            if len(found) > 1:
                raise AmbiguousReference(f"tag names {len(found)} images", where=f"{self.path}:{old}")
            return index.change({new: named(found[0], new)})

        self._index.update(change)
        return found[0]

    def untag(self, name: str) -> bool:
        """Remove a tag; return False if there was none. The blobs stay."""
        removed = False

        def change(index: IndexText) -> IndexText:
            nonlocal removed
            removed = name in index.places
            return index.change({name: None})

        self._index.update(change)
        return removed

    def _parts(self) -> tuple[Index, dict[int, Any]]:
        return parse_index(self._index.raw(), str(self._index.path))
