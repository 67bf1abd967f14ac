"""Scripts that call ``umoci``, run with umoci and with layerfarm under its name, and what their authors see of each.

A script runs in a directory with the inputs of :func:`inputs`. Afterwards everything in that directory is described
by :func:`seen`: trees, layouts with their images and layers, bundles. The two descriptions are to be equal except
what docs/umoci-differences.md names, which is left out here, once for all scripts:

* times that umoci took from the clock, and the ones of parents that no layer names;
* mediaType of manifests and indexes, which umoci writes since 0.5.0, and blobs that umoci leaves and layerfarm not;
* digests and sizes of compressed layers, annotations of layers, ``created_by``, the order of index.json;
* layerfarm's own files beside a bundle and in a layout;
* hostname, ociVersion, cgroup namespace, empty annotations and HOME in config.json.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from layerfarm.jobs.store import Layout
from tests.interop.tools import LAYERFARM
from tests.trees import Node, directory, file, in_seconds, read_tree, symlink, tree
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, entry

NOW: Final = 1_700_000_000
"""Seconds since the epoch; nothing that the tests make says a later time, so such a one is from the clock."""
_UNPACK: Final = re.compile(r"\bumoci((?: --log[= ]\w+)?(?: raw)? unpack)(?![^\n|;)]*--rootless)")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_REF: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Client:
    """One who calls umoci: where the commands are found, and they themselves, for ``bash -e``."""

    name: str
    source: str
    """Repository and file."""
    script: str
    root: bool = False
    """True: it takes root, not only because umoci does without ``--rootless``."""


@dataclass(frozen=True)
class Seen:
    """Outcome of a script: its exit code, its output, and everything in its directory."""

    code: int
    out: str
    trees: dict[bytes, Node]
    layouts: dict[str, Any]
    documents: dict[str, Any]
    """Each umoci.json and config.json."""
    err: str = ""
    """For the message of a test that fails; not compared."""


Run = Callable[[str | list[str]], tuple[Seen, Seen]]


def inputs(place: Path) -> None:
    """Files for scripts: the layout ``base`` with the tags ``latest`` and ``fedora:38``, and ``rootfs`` and ``app``."""
    lower = archive(
        entry(".", "dir"),
        entry("bin", "link", link="usr/bin"),
        entry("etc", "dir"),
        entry("etc/os-release", content=b'NAME="Tumbleweed"\n'),
        entry("etc/passwd", content=b"root:x:0:0:root:/root:/bin/sh\nvcap:x:2000:2000::/home/vcap:/bin/sh\n"),
        entry("etc/group", content=b"root:x:0:\nvcap:x:2000:\n"),
        entry("home", "dir"),
        entry("home/vcap", "dir"),
        entry("tmp", "dir", mode=0o1777),
        entry("usr", "dir"),
        entry("usr/bin", "dir"),
        entry("usr/bin/sh", content=b"#!", mode=0o755),
        entry("usr/bin/ash", "hardlink", link="usr/bin/sh", mode=0o755),
        entry("usr/bin/su", content=b"#!", mode=0o4755),
        entry("usr/gone", content=b"x"),
    )
    upper = archive(
        entry("usr", "dir"),
        entry("usr/.wh.gone"),
        entry("usr/share", "dir", mode=0o750),
        entry("usr/share/doc", content=b"text", mode=0o400),
        entry("var", "dir"),
        entry("var/link", "link", link="/etc/passwd"),
    )
    linked = archive(entry("bin", "dir"), entry("bin/extra", content=b"through the link", mode=0o755))
    config = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "WorkingDir": "/home", "Labels": {"name": "base"}}
    created = "2020-01-01T00:00:00Z"
    history = [{"created": created, "created_by": "base"}, {"created": created, "created_by": "second"}]
    layout = Layout.create(place / "base")
    for tag, layers in (("latest", [lower, upper]), ("fedora:38", [lower, linked])):
        image(layout, layers, tag=tag, config=config, created=created, history=history)
    shutil.rmtree(place / "base/.layerfarm", ignore_errors=True)
    own = {"uid": os.geteuid(), "gid": os.getegid()}
    spec = {
        ".": directory(**own),
        "etc": directory(**own),
        "etc/os-release": file(b"ID=poky\n", **own),
        "lib": symlink("usr/lib", **own),
        "tmp": directory(mode=0o1777, **own),
        "tmp/left": file(b"over", **own),
        "usr/lib": directory(**own),
        "usr/lib/libc.so": file(b"\x7fELF" * 1000, mode=0o755, **own),
        "usr/lib/empty": directory(mode=0o711, **own),
        "usr": directory(**own),
    }
    tree(place / "rootfs", spec)
    app = {".": directory(**own), "run": file(b"#!/bin/sh\n", mode=0o755, **own), "data": directory(**own)}
    tree(place / "app", app | {"data/\u00e4": file(b"utf-8", **own), "data/v": file(b"1", **own)})


def both(place: Path, umoci: str) -> Run:
    """A function that runs a script twice, in copies of the same directory; umoci's outcome is the first."""
    inputs_ = place / "inputs"
    inputs_.mkdir()
    inputs(inputs_)
    programs = {"theirs": Path(umoci), "ours": Path(LAYERFARM)}
    for name, target in programs.items():
        link = place / name / "bin/umoci"
        link.parent.mkdir(parents=True)
        link.symlink_to(target)

    def run(script: str | list[str]) -> tuple[Seen, Seen]:
        if isinstance(script, str):
            script = ["bash", "-ec", script if os.geteuid() == 0 else _UNPACK.sub(r"umoci\1 --rootless", script)]
        found = [_run(script, place / name, inputs_) for name in programs]
        return found[0], found[1]

    return run


def _run(command: list[str], place: Path, inputs_: Path) -> Seen:
    work = place / "work"
    subprocess.run(["cp", "-a", inputs_, work], check=True)
    (place / "tmp").mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LAYERFARM_", "SOURCE_"))}
    variables |= {"PATH": f"{place / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(place)}
    done = subprocess.run(
        command,
        cwd=work,
        env=variables | {"TMPDIR": str(place / "tmp"), "XDG_RUNTIME_DIR": str(place / "tmp"), "TZ": "UTC-2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return replace(seen(place / "work"), code=done.returncode, out=_unnamed(done.stdout, place), err=done.stderr)


def _unnamed(text: str, place: Path) -> str:
    return _DIGEST.sub("DIGEST", text.replace(str(place), "PLACE"))


# --- what is in a directory ------------------------------------------------------------------------


def seen(place: Path) -> Seen:
    layouts = {
        str(path.parent.relative_to(place)): _layout(path.parent)
        for path in place.rglob("oci-layout")
        if path.is_file()
    }
    bundles = {str(path.parent.relative_to(place)) for path in place.rglob("umoci.json")}
    trees: dict[bytes, Node] = {}
    documents: dict[str, Any] = {}
    for name, node in in_seconds(read_tree(place)).items():
        path = os.fsdecode(name)
        if any(path.startswith(f"{layout}/") for layout in layouts) or path.startswith("inputs/"):
            continue
        if Path(path).suffix in (".layerfarm", ".stat") and str(Path(path).parent) in bundles:
            continue
        if Path(path).suffix in (".tar", ".gz") and node.content is not None:
            node = replace(node, content=_listing(node.content))
        elif (node.content or b"").startswith(b'{\n\t"ociVersion"'):
            documents[path] = runtime(json.loads(node.content or b""))
            node = replace(node, content=None)
        elif Path(path).name == "umoci.json":
            documents[path] = _bundle(json.loads(node.content or b""))
            node = replace(node, content=None)
        elif path.endswith(".mtree"):
            node = replace(node, content=None)
        trees[os.fsencode(_DIGEST.sub("DIGEST", path))] = node
    return Seen(0, "", trees, layouts, documents)


def _listing(content: bytes) -> bytes:
    """The sorted names of a tar, without digests and what layerfarm keeps beside a layout's own files."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archived:
        names = sorted({_DIGEST.sub("DIGEST", name) for name in archived.getnames() if ".layerfarm" not in name})
    return "\n".join(names).encode()


def _layout(path: Path) -> dict[str, Any]:
    index = json.loads((path / "index.json").read_bytes())
    images = {}
    used = set()
    for descriptor in index.pop("manifests") or []:  # umoci 0.4.7 writes null for none
        manifest = json.loads(_blob(path, descriptor))
        used |= {each["digest"] for each in (descriptor, manifest["config"], *manifest["layers"])}
        config = json.loads(_blob(path, manifest["config"]))
        layers = [_layer(_blob(path, layer)) for layer in manifest["layers"]]
        diff_ids = config.get("rootfs", {}).pop("diff_ids", None) or []
        for described in (descriptor, manifest["config"], *manifest["layers"]):
            del described["digest"], described["size"]
        for layer in manifest["layers"]:
            layer.pop("annotations", None)
        for history in config.get("history") or []:
            history["created_by"] = history.get("created_by", "").replace("layerfarm", "umoci")
        tag = (descriptor.get("annotations") or {}).get(_REF)
        images[tag] = {
            "descriptor": descriptor,
            "manifest": manifest,
            "config": config,
            "diff_ids": len(diff_ids),
            "layers": layers,
        }
    unused = [each.name for each in path.glob("blobs/*/*") if f"{each.parent.name}:{each.name}" not in used]
    return {"index": index, "images": images, "garbage": bool(unused)}


def _blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    return (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()


def _layer(blob: bytes) -> dict[str, Any]:
    """Name -> everything that an entry says."""
    found = {}
    # umoci 0.4.7's insert leaves out the end of the tar, and what fills up the last file's block.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob) + bytes(2048)), ignore_zeros=True) as archived:
        for info in archived:
            content = archived.extractfile(info) if info.isreg() else None
            found[info.name.strip("/") or "."] = {
                "kind": (info.type, info.mode, info.uid, info.gid, info.size, info.linkname),
                "content": hashlib.sha256(content.read()).hexdigest() if content else None,
                "xattrs": {name: text for name, text in info.pax_headers.items() if name.startswith("SCHILY.xattr.")},
                "mtime": int(info.mtime),
            }
    return found


def _bundle(meta: dict[str, Any]) -> dict[str, Any]:
    """Its id maps; an absent one is null to umoci."""
    return {name: value for name, value in meta["map_options"].items() if value is not None}


def runtime(spec: dict[str, Any]) -> dict[str, Any]:
    """A config.json without what is meant to differ: test_bundle_runtime.py holds each of these against umoci's."""
    for name in ("ociVersion", "hostname"):
        del spec[name]
    spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space != {"type": "cgroup"}]
    spec["mounts"].sort(key=lambda mount: str(mount["destination"]))
    spec["process"]["env"] = [each for each in spec["process"]["env"] if not each.startswith("HOME=")]
    notes = {name: value for name, value in spec.get("annotations", {}).items() if value}
    notes.pop("org.opencontainers.image.created", None)
    spec["annotations"] = notes
    return spec


# --- comparing -------------------------------------------------------------------------------------


def differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """Each value that is not the same, except times that umoci took from the clock."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = []
        for name in sorted(theirs.keys() | ours.keys(), key=str):
            value = theirs.get(name)
            if name in ("created", "mtime") and _of_the_clock(value):
                continue
            if (name == "mediaType" and value is None) or (name == "garbage" and value):
                continue
            found += differences(theirs.get(name, "absent"), ours.get(name, "absent"), f"{where}/{name}")
        return found
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = enumerate(zip(theirs, ours, strict=True))
        return [each for number, pair in pairs for each in differences(*pair, f"{where}/{number}")]
    if isinstance(theirs, Node) and isinstance(ours, Node) and theirs.mtime >= NOW * 10**9:
        ours = replace(ours, mtime=theirs.mtime)
    return [] if theirs == ours else [f"{where}: umoci {theirs!r}, layerfarm {ours!r}"]


def _of_the_clock(value: object) -> bool:
    if isinstance(value, str):
        return datetime.fromisoformat(value[:19]).timestamp() >= NOW
    return isinstance(value, int) and value >= NOW


def assert_same(theirs: Seen, ours: Seen, *, dated: bool = True) -> None:
    """``dated``: the images' own times are the same, too; umoci's repack leaves them, layerfarm's does not."""
    said = f"\numoci: {theirs.err}\nlayerfarm: {ours.err}"
    assert (ours.code, ours.out) == (theirs.code, theirs.out), said
    assert "Traceback" not in ours.err, said
    found = [
        each
        for part in ("layouts", "documents", "trees")
        for each in differences(getattr(theirs, part), getattr(ours, part), part)
        if dated or not re.match("layouts/.*/config/created:", each)
    ]
    assert not found, "\n".join(found) + said
