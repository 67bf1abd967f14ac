"""A registry with all that real ones hold: images of many builders and formats, artifacts, signatures, other systems.

Every document is written here as its builder writes it, without the product; only podman's and umoci's are their own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import zstandard

from tests.catalog.registry import Registry

OCI: Final = "application/vnd.oci.image."
DOCKER: Final = "application/vnd.docker."
INDEX: Final = f"{OCI}index.v1+json"
MANIFEST: Final = f"{OCI}manifest.v1+json"
DOCKER_LIST: Final = f"{DOCKER}distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = f"{DOCKER}distribution.manifest.v2+json"
_FOREIGN: Final = f"{DOCKER}image.rootfs.foreign.diff.tar.gzip"
_EMPTY: Final = "application/vnd.oci.empty.v1+json"
_LAYER_TYPES: Final = {
    ("oci", "gzip"): f"{OCI}layer.v1.tar+gzip",
    ("oci", "zstd"): f"{OCI}layer.v1.tar+zstd",
    ("oci", "none"): f"{OCI}layer.v1.tar",
    ("docker", "gzip"): f"{DOCKER}image.rootfs.diff.tar.gzip",
}
_CHUNK: Final = 1 << 20


class Layer(NamedTuple):
    """A layer as a registry holds it."""

    diff_id: str
    content: bytes
    compression: str


Entry = tuple[str, bytes | None] | tarfile.TarInfo


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(*entries: Entry, compression: str = "gzip", time: int = 1_700_000_000) -> Layer:
    """A layer of files ``(path, content)``, directories ``(path, None)``, and whatever a TarInfo says."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info, content = (entry, None) if isinstance(entry, tarfile.TarInfo) else _info(*entry)
            info.mtime = time
            archive.addfile(info, BytesIO(content or b""))
    raw = out.getvalue()
    packed = {
        "gzip": lambda: gzip.compress(raw, 6, mtime=0),
        "zstd": lambda: zstandard.ZstdCompressor(3).compress(raw),
        "none": lambda: raw,
    }[compression]()
    return Layer(digest(raw), packed, compression)


def _info(name: str, content: bytes | None) -> tuple[tarfile.TarInfo, bytes | None]:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    info.mode = 0o755 if content is None else 0o644
    info.size = len(content or b"")
    return info, content


def special(name: str, kind: bytes, link: str = "", mode: int = 0o777) -> tarfile.TarInfo:
    """An entry of another type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def large_layer(nbytes: int) -> Layer:
    """A layer with one file of ``nbytes`` bytes, mostly zeros."""
    hashed, packer, parts = hashlib.sha256(), zlib.compressobj(1, zlib.DEFLATED, 31), []

    def write(chunk: bytes) -> None:
        hashed.update(chunk)
        parts.append(packer.compress(chunk))

    info = tarfile.TarInfo("srv/model.bin")
    info.size, info.mtime, info.mode = nbytes, 1_700_000_000, 0o644
    directory = special("srv", tarfile.DIRTYPE, mode=0o755)
    directory.mtime = 1_700_000_000
    write(directory.tobuf(tarfile.PAX_FORMAT) + info.tobuf(tarfile.PAX_FORMAT))
    random = Random(15)
    for at in range(0, nbytes, _CHUNK):
        size = min(_CHUNK, nbytes - at)
        write((random.randbytes(2000) + bytes(_CHUNK))[:size] if at % (8 * _CHUNK) == 0 else bytes(size))
    write(bytes(-nbytes % 512 + 1024))
    parts.append(packer.flush())
    return Layer(f"sha256:{hashed.hexdigest()}", b"".join(parts), "gzip")


class Mixed:
    """The images of ``team/…`` in a registry. ``large``: bytes of the largest file."""

    def __init__(self, registry: Registry, umoci: str, large: int) -> None:
        self._registry = registry
        self._umoci = umoci
        self._put: set[tuple[str, str]] = set()
        self._large = large

    # --- documents -------------------------------------------------------------------------------

    def blob(self, repository: str, content: bytes, media_type: str) -> dict[str, Any]:
        """Upload a blob; return its descriptor."""
        if (repository, digest(content)) not in self._put:
            self._put.add((repository, digest(content)))
            self._registry.put_blob(repository, content)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content)}

    def manifest(self, repository: str, document: dict[str, Any], *tags: str) -> dict[str, Any]:
        """Upload a manifest or index under its digest and tags; return its descriptor."""
        raw = json.dumps(document, indent=3).encode()
        for place in (f"{repository}@{digest(raw)}", *(f"{repository}:{tag}" for tag in tags)):
            self._registry.put_manifest(place, raw, document["mediaType"])
        return {"mediaType": document["mediaType"], "digest": digest(raw), "size": len(raw)}

    def image(
        self,
        repository: str,
        layers: Sequence[Layer],
        *tags: str,
        form: str = "oci",
        foreign: Sequence[dict[str, Any]] = (),
        **config: Any,
    ) -> dict[str, Any]:
        """Upload an image in OCI's or Docker's format; ``foreign``: descriptors of layers below, kept elsewhere."""
        ids = [digest(json.dumps(each).encode()) for each in foreign] + [each.diff_id for each in layers]
        content: dict[str, Any] = {"architecture": "amd64", "os": "linux"}
        content |= {"config": {}, **config, "rootfs": {"type": "layers", "diff_ids": ids}}
        content.setdefault("history", [{"created_by": f"step {number}"} for number in range(len(ids))])
        config_type = f"{OCI}config.v1+json" if form == "oci" else f"{DOCKER}container.image.v1+json"
        types = [_LAYER_TYPES[form, each.compression] for each in layers]
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST if form == "oci" else DOCKER_MANIFEST,
            "config": self.blob(repository, json.dumps(content, indent=1).encode(), config_type),
            "layers": [
                *foreign,
                *(self.blob(repository, each.content, kind) for each, kind in zip(layers, types, strict=True)),
            ],
        }
        return self.manifest(repository, document, *tags)

    def index(self, repository: str, entries: Iterable[dict[str, Any]], *tags: str, form: str = "oci") -> None:
        kind = INDEX if form == "oci" else DOCKER_LIST
        self.manifest(repository, {"schemaVersion": 2, "mediaType": kind, "manifests": list(entries)}, *tags)

    def artifact(
        self, repository: str, kind: str, content: bytes, *tags: str, subject: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Upload an artifact as ORAS does; return its entry in an index of referrers."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": self.blob(repository, b"{}", _EMPTY),
            "layers": [self.blob(repository, content, kind)],
        }
        if subject is not None:
            document["subject"] = subject
        return {**self.manifest(repository, document, *tags), "artifactType": kind}

    def attestation(self, repository: str, subject: dict[str, Any], new: bool) -> dict[str, Any]:
        """Upload BuildKit's attestation of an image, in the form of its newer or older versions; return its entry."""
        statement = json.dumps({"subject": [{"digest": subject["digest"]}]}).encode()
        config = b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            **({"artifactType": "application/vnd.docker.attestation.manifest.v1+json"} if new else {}),
            "config": self.blob(repository, *((b"{}", _EMPTY) if new else (config, f"{OCI}config.v1+json"))),
            "layers": [self.blob(repository, statement, "application/vnd.in-toto+json")],
        }
        marks = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": subject["digest"],
        }
        unknown = {"architecture": "unknown", "os": "unknown"}
        return {**self.manifest(repository, document), "annotations": marks, "platform": unknown}

    # --- repositories ----------------------------------------------------------------------------

    def fill(self) -> None:
        """Push everything."""
        self._apps()
        self._builders()
        self._deep()
        self._line()
        self._charts()
        self._systems()
        self._signed()
        base = layer(("etc", None), ("etc/name", b"large"))
        self.image("team/large", [base, large_layer(self._large)], "1.0", created="2024-05-01T00:00:00Z")

    def _apps(self) -> None:
        """Several platforms with attestations, Docker's formats, a layer twice, zstd, plain layers, a chart."""
        base, random = layer(("bin", None), ("bin/sh", Random(1).randbytes(30_000))), Random(2)
        for number in range(3):
            entries, marks = [], []
            for platform in ({"architecture": "amd64"}, {"architecture": "arm64", "variant": "v8"}):
                own = layer(("srv", None), ("srv/app", random.randbytes(5000 + 100 * number)))
                layers = [base, own] if platform["architecture"] == "amd64" else [base, own, layer(("srv/arm", b"arm"))]
                made = self.image("team/app", layers, created=f"2024-01-0{number + 1}T00:00:00Z", **platform)
                entries.append({**made, "platform": {"os": "linux", **platform}})
                marks.append(self.attestation("team/app", made, new=number == 2))
            self.index("team/app", [*entries, *marks], f"1.{number}")
        same = layer(("etc", None), ("etc/motd", b"hello\n"))
        self.image("team/formats", [base, same, base], "1.0-twice")
        self.image("team/formats", [base, layer(("zstd", b"zstd" * 500), compression="zstd")], "1.1-zstd")
        self.image("team/formats", [base, layer(("plain", b"plain" * 500), compression="none")], "1.2-plain")
        history = [{"created_by": "/bin/sh -c #(nop) ADD file", "created": "2024-01-01T00:00:00Z"}] * 2
        docker = {"docker_version": "20.10.7", "container": "0" * 64, "history": history}
        self.image("team/formats", [base, layer(("one", b"one"))], "1.3-docker", form="docker", **docker)
        entries = [
            {
                **self.image("team/formats", [base, layer(("many", name.encode()))], form="docker", architecture=name),
                "platform": {"architecture": name, "os": "linux"},
            }
            for name in ("amd64", "arm64")
        ]
        self.index("team/formats", entries, "1.4-docker-list", form="docker")
        self._chart("team/formats", "chart-1.0")

    def _builders(self) -> None:
        """Images as builders make them, one without layers, and one whose layers delete much of each other."""
        zero = "0001-01-01T00:00:00Z"
        files = layer(("ko-app/web", b"\x7fELF" * 2000), ("var/run/ko/index.html", b"<p>"), time=0)
        steps = [{"author": "github.com/google/go-containerregistry", "created": zero, "created_by": "crane append"}]
        self.image("team/tools", [files], "1-crane", form="docker", created=zero, history=steps)
        kaniko = [
            layer(("/", None), ("etc", None), ("etc/passwd", b"root:x:0:0\n"), ("workspace", None)),
            layer(("/", None), ("workspace", None), ("workspace/a", b"a" * 3000), ("workspace/b", b"b")),
            layer(("/", None), ("workspace", None), ("workspace/.wh.b", b""), ("workspace/c", b"c")),
        ]
        steps = [{"author": "kaniko", "created": zero, "created_by": f"COPY {name}"} for name in "abc"]
        self.image("team/tools", kaniko, "2-kaniko", form="docker", created=zero, author="kaniko", history=steps)
        whiteouts = [
            layer(("a", None), ("a/x", b"x"), ("a/y", b"y"), ("b", b"file"), ("c", None), ("c/d", b"d")),
            layer((".wh.b", b""), ("a", None), ("a/.wh.x", b"")),
            layer(("b", None), ("b/now", b"a directory"), ("c", None), (".wh.a", b"")),
            layer(("c", None), ("c/.wh..wh..opq", b""), ("c/new", b"new"), ("a", b"a file")),
            layer(("b", None), ("b/.wh.now", b""), special("b/hard", tarfile.LNKTYPE, "c/new")),
        ]
        self.image("team/tools", whiteouts, "3-whiteouts")
        self.image("team/tools", [], "4-scratch", history=[{"created_by": "ENV A=B", "empty_layer": True}])
        self._by_umoci("team/tools", "5-umoci")
        self._by_podman("team/tools", "6-buildah")

    def _deep(self) -> None:
        """Images of 100 and 127 layers, the most that overlay2 mounts."""
        layers = [
            layer(("d", None), (f"d/f{number}", b"%d" % number * 100), ("last", b"%d" % number))
            for number in range(127)
        ]
        self.image("team/deep", layers[:100], "100", created="2024-02-01T00:00:00Z")
        self.image("team/deep", layers, "127", created="2024-02-02T00:00:00Z")
        self.image("team/wide", layers, "127")

    def _line(self) -> None:
        """Tags of a distroless image with an application, of which all but the last component changes."""
        random = Random(3)
        libraries = {f"usr/lib/lib{name}.so": random.randbytes(20_000) for name in "abcd"}
        for number in range(4):
            libraries["usr/lib/libb.so"] = random.randbytes(20_000)
            lists = [
                (f"var/lib/dpkg/status.d/lib{name}", f"Package: lib{name}\nVersion: {version}\n".encode())
                for name, version in zip("abcd", (1, number, 1, 1), strict=True)
            ]
            base = layer(
                *((path, None) for path in ("usr", "usr/lib", "var", "var/lib", "var/lib/dpkg")),
                ("var/lib/dpkg/status.d", None),
                special("lib", tarfile.SYMTYPE, "usr/lib"),
                special("tmp", tarfile.DIRTYPE, mode=0o1777),
                *libraries.items(),
                *lists,
            )
            app = layer(("app", None), ("app/main", random.randbytes(8000)), ("app/data", Random(4).randbytes(9000)))
            when = f"2024-03-0{number + 1}T00:00:00+01:00"
            self.image("team/line", [base, app], f"1.{number}", created=when, config={"User": "65532"})

    def _charts(self) -> None:
        self._chart("team/charts", "web-1.0")
        self._chart("team/charts", "web-1.1")
        self.artifact("team/charts", "application/vnd.wasm.config.v0+json", b"\0asm", "module-1.0")

    def _chart(self, repository: str, tag: str) -> None:
        """A chart as Helm pushes it: the type of the config says what it is."""
        config = json.dumps({"name": "web", "version": tag}).encode()
        chart = gzip.compress(tag.encode() * 300, mtime=0)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(repository, config, "application/vnd.cncf.helm.config.v1+json"),
            "layers": [self.blob(repository, chart, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")],
        }
        self.manifest(repository, document, tag)

    def _systems(self) -> None:
        """Linux and Windows, whose base is fetched from elsewhere."""
        away = {
            "mediaType": _FOREIGN,
            "size": 1_700_000_000,
            "digest": digest(b"base of windows"),
            "urls": ["https://example.org/base"],
        }
        for number in range(2):
            linux = self.image("team/systems", [layer(("app", b"linux" * (500 + number)))], form="docker")
            own = layer(("Files", None), ("Files/app.exe", b"windows" * (500 + number)))
            windows = self.image("team/systems", [own], form="docker", foreign=[away], os="windows")
            entries = [
                {**made, "platform": {"architecture": "amd64", "os": system}}
                for made, system in ((linux, "linux"), (windows, "windows"))
            ]
            self.index("team/systems", entries, f"1.{number}", form="docker")

    def _signed(self) -> None:
        """An image with cosign's tags, and with referrers, one of which has a referrer of its own."""
        made = self.image("team/signed", [layer(("signed", b"signed" * 100))], "1.0")
        beside = made["digest"].replace(":", "-")
        cosign = "application/vnd.dev.cosign.simplesigning.v1+json"
        for ending in ("sig", "att", "sbom"):
            config = {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
            document = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.blob("team/signed", json.dumps(config).encode(), f"{OCI}config.v1+json"),
                "layers": [self.blob("team/signed", f"cosign {ending}".encode(), cosign)],
            }
            self.manifest("team/signed", document, f"{beside}.{ending}")
        sbom = self.artifact("team/signed", "application/spdx+json", b"{}", subject=made)
        signature = "application/vnd.cncf.notary.signature"
        on_image = self.artifact("team/signed", signature, b"on the image", subject=made)
        self.index("team/signed", [sbom, on_image], beside)
        plain = {name: sbom[name] for name in ("mediaType", "digest", "size")}
        on_sbom = self.artifact("team/signed", signature, b"on the sbom", subject=plain)
        self.index("team/signed", [on_sbom], sbom["digest"].replace(":", "-"))

    # --- real builders ---------------------------------------------------------------------------

    def _by_umoci(self, repository: str, tag: str) -> None:
        with tempfile.TemporaryDirectory(prefix="layerfarm-mixed-") as place:
            directory = Path(place)
            rootfs = directory / "bundle/rootfs"

            def umoci(*arguments: str) -> None:
                _quietly(self._umoci, *arguments, where=directory)

            umoci("init", "--layout", "s")
            umoci("new", "--image", "s:t")
            umoci("unpack", "--image", "s:t", "bundle")
            (rootfs / "opt").mkdir()
            (rootfs / "opt/one").write_bytes(b"one" * 900)
            umoci("repack", "--refresh-bundle", "--image", "s:t", "bundle")
            (rootfs / "opt/one").unlink()
            (rootfs / "opt/two").write_bytes(b"two" * 900)
            umoci("repack", "--refresh-bundle", "--image", "s:t", "bundle")
            self._registry.put(directory / "s", "t", f"{repository}:{tag}")

    def _by_podman(self, repository: str, tag: str) -> None:
        """Build with podman, whose builds are buildah's."""
        from tests.interop.podman import Podman

        with tempfile.TemporaryDirectory(prefix="layerfarm-mixed-") as place:
            podman, context = Podman(Path(place) / "podman"), Path(place) / "podman" / "context"
            context.mkdir()
            (context / "web").write_bytes(b"#!/bin/sh\necho web\n" * 200)
            (context / "conf").write_bytes(b"port = 80\n")
            (context / "Containerfile").write_text(
                "FROM scratch\nCOPY web /usr/bin/web\nENV PORT=80\nCOPY conf /etc/conf\nCMD /usr/bin/web\n"
            )
            podman.run("build", "--quiet", "--layers", "--tag", "localhost/web:1", str(context))
            podman.push("localhost/web:1", f"{self._registry.host}/{repository}:{tag}")


def _quietly(*command: str, where: Path) -> None:
    done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def fill(registry: Registry, program: Callable[[str], str], large: int) -> None:
    """Push all images to a registry; ``program`` finds programs; ``large``: bytes of the largest file.

    Root is needed: images hold devices and files of other owners.
    """
    program("podman")
    Mixed(registry, program("umoci"), large).fill()
